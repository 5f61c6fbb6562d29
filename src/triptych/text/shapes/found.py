"""What is found in a record: its turns, or why there are none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from triptych.errors import Code


class ShapeError(ValueError):
    """A record that shows no dialogue: the code and the message of the problem."""

    def __init__(self, message: str, code: Code = "bad-shape") -> None:
        super().__init__(message)
        self.code: Code = code


@dataclass(slots=True)
class Dialogue:
    """The turns of a record as found, each an object with a role and a content."""

    turns: list[Any]
    keys: set[str] = field(default_factory=set)
    """Keys of the record that they were read from."""
