"""What can be wrong and how it is said: origins, coded problems and the exceptions that carry them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Code = Literal[
    "marker-count",
    "role-order",
    "empty-answer",
    "bad-shape",
    "image-missing",
    "image-unreadable",
    "image-extreme",
    "image-outside",
    "box-outside",
    "too-long",
    "sample-gone",
]


_CONTROLS = "\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"  # also line separators, text direction, no UTF-8
_UNPRINTABLE = re.compile(f"[\x00-\x08\x0a-\x1f{_CONTROLS}]")
_UNPRINTABLE_IN_LINES = re.compile(f"[\x00-\x08\x0b-\x1f{_CONTROLS}]")
_RAW_IN_JSON = re.compile(f"[{_CONTROLS}]")


def printable(text: str, *, lines: bool = False) -> str:
    """Text that a terminal or a log shows and does not obey: control characters as ``\\x1b``, also those that hide or
    turn what is written. The one owner of this; what names a key, value, path or URL of the data goes through here.

    Args:
        text: of any origin.
        lines: keep line breaks.
    """
    return (_UNPRINTABLE_IN_LINES if lines else _UNPRINTABLE).sub(_escaped, text)


def printable_json(text: str) -> str:
    """JSON text of the same meaning, in which no control character stands raw: JSON itself escapes those below 32."""
    return _RAW_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a sample came from."""

    path: str
    line: int
    """1-based line of a JSONL file, or 1-based element number of a JSON array; 0 means the file as a whole."""
    at: int = 0
    """1-based line in which an element of an array begins; 0 where the array is on one line, or there is none."""
    item: int = 0
    """1-based number within a list of records on that line, or in that element; 0 if it is a record itself."""

    @property
    def number(self) -> str:
        """File, and line or element: the same name however the file is laid out."""
        return f"{self.path}:{self.line}"

    def __str__(self) -> str:
        number = f"{self.line}.{self.item}" if self.item else f"{self.line}"
        if self.at and self.at != self.line:
            return f"{self.path}:{self.at}, element {number}"
        return f"{self.path}:{number}" if self.line else self.path


@dataclass(frozen=True, slots=True)
class Problem:
    """One defect of one sample: what it is, where it is, and what to do about it."""

    code: Code
    origin: Origin
    message: str
    """What was found and what to do, in one sentence or two."""
    turn: int | None = None
    """1-based turn of the conversation, where the defect belongs to one."""
    image: int | None = None
    """1-based image in reading order, where the defect belongs to one."""

    def __str__(self) -> str:
        place = "".join(
            f", {name} {value}" for name, value in (("turn", self.turn), ("image", self.image)) if value is not None
        )
        return printable(f"{self.origin}{place}: {self.code}: {self.message}")

    def to_dict(self) -> dict[str, Any]:
        """JSON form: ``code``, ``origin``, ``path``, ``line`` of the file, ``message`` and, where known, the place."""
        fields: dict[str, Any] = {
            "code": self.code,
            "origin": str(self.origin),
            "path": self.origin.path,
            "line": self.origin.at or self.origin.line,
            "message": self.message,
        }
        if self.origin.at:
            fields["element"] = self.origin.line
        if self.origin.item:
            fields["item"] = self.origin.item
        if self.turn is not None:
            fields["turn"] = self.turn
        if self.image is not None:
            fields["image"] = self.image
        return fields


class TriptychError(Exception):
    """Base of every error that is the user's to fix; the command line prints it without a traceback."""

    def __str__(self) -> str:
        return printable(super().__str__(), lines=True)


class ConfigError(TriptychError):
    """A run file or a command-line setting that cannot be used."""


class ModelError(TriptychError):
    """A model folder that cannot be used: missing files, an unknown family, missing special tokens."""


class SampleError(TriptychError):
    """One sample is defective. Raised and caught inside the data path; carries every problem found in it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


class DataError(TriptychError):
    """The data cannot be used as configured; carries all problems of all sources."""

    def __init__(self, problems: Sequence[Problem], advice: Sequence[str] | str = ()) -> None:
        lines = fold(problems)
        lines += [advice] if isinstance(advice, str) else advice
        super().__init__("\n".join(filter(None, lines)))
        self.problems = tuple(problems)


EXAMPLES = 5
"""Problems of each code that are shown where there are many."""
_VARIABLE = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|\d[\d,.]*")


def fold(problems: Sequence[Problem], examples: int = EXAMPLES) -> list[str]:
    """A line for each problem in input order; of a code with many only some, and a line that counts the others.

    Of each code the first of every kind of message is shown before a second of any kind.

    Args:
        problems: in input order.
        examples: of each code; one more is shown rather than to say that one is left out.
    """
    by_code: dict[str, dict[str, list[int]]] = {}
    for number, problem in enumerate(problems):
        kinds = by_code.setdefault(problem.code, {})
        kinds.setdefault(_VARIABLE.sub("#", problem.message), []).append(number)
    lines: list[str] = []
    for code, kinds in by_code.items():
        count = sum(map(len, kinds.values()))
        ranks = sorted((rank, number) for numbers in kinds.values() for rank, number in enumerate(numbers))
        kept = sorted(number for _, number in ranks[: count if count <= examples + 1 else examples])
        lines += [str(problems[number]) for number in kept]
        if len(kept) < count:
            lines.append(f"... and {count - len(kept):,} more {code}; `triptych check --all` lists them")
    return lines


def counts(problems: Sequence[Problem]) -> str:
    """How many problems there are of each code: ``280 image-missing, 12 bad-shape``."""
    found = Counter(problem.code for problem in problems)
    return ", ".join(f"{count:,} {code}" for code, count in found.most_common())
