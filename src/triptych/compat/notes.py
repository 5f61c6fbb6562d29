"""What someone who brings another tool's run file should know: what differs, what was dropped, what is left to do."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Notes:
    """Sentences in three groups, each shown once."""

    differs: list[str] = field(default_factory=list)
    """What is done in another way on purpose."""
    dropped: list[str] = field(default_factory=list)
    """What the file sets and nothing follows from."""
    must_do: list[str] = field(default_factory=list)
    """What another command does, or the user."""

    def text(self) -> str:
        """The groups that hold something, below their heads."""
        groups = (
            ("differs", self.differs),
            ("dropped, without an effect on what is learned", self.dropped),
            ("you must do", self.must_do),
        )
        return "\n".join(
            line
            for head, sentences in groups
            if sentences
            for line in (f"{head}:", *(f"  {sentence}" for sentence in dict.fromkeys(sentences)))
        )
