"""Answers of a run to the samples that it shows, over its steps, as a file that a resumed run goes on with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from triptych.errors import printable_json
from triptych.pages.page import write_whole

SHOWINGS = "showings.jsonl"


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """What a model wrote for one of the samples."""

    text: str
    right: bool
    finished: bool
    """False if it was cut off"""


@dataclass(frozen=True, slots=True)
class Showing:
    """The answers at one step."""

    step: int
    answers: list[ShownAnswer]


@dataclass(frozen=True, slots=True)
class Matter:
    """How much answers depend on the images: the same samples with their images changed."""

    change: str
    """What was done to them"""
    asked: int
    """Samples for which that is possible"""
    changed: int
    """Answers that became others"""


class Showings:
    """All answers of a run so far."""

    def __init__(self, output: Path) -> None:
        self._path = output / SHOWINGS
        self.found: list[Showing] = []

    def go_on_from(self, step: int, origins: Sequence[str]) -> None:
        """Take what an earlier start wrote up to its checkpoint; answers to other samples are not taken."""
        self.found = [item for item in read_showings(self._path.parent, origins) if item.step <= step]
        self._write(origins)

    def has(self, step: int) -> bool:
        return any(item.step == step for item in self.found)

    def add(self, step: int, answers: Sequence[ShownAnswer], origins: Sequence[str]) -> None:
        """
        Raises:
            OSError: if they cannot be written.
        """
        self.found.append(Showing(step, list(answers)))
        self._write(origins)

    def _write(self, origins: Sequence[str]) -> None:
        lines = [json.dumps({"origins": list(origins)}, ensure_ascii=False)]
        lines += [json.dumps(asdict(item), ensure_ascii=False) for item in self.found]
        write_whole(self._path, "".join(f"{printable_json(line)}\n" for line in lines))


def read_showings(output: Path, origins: Sequence[str] | None = None) -> list[Showing]:
    """The answers of a run; none if the file is missing, damaged, or of other samples than ``origins``."""
    try:
        first, *lines = map(json.loads, (output / SHOWINGS).read_text(encoding="utf-8").splitlines())
        if origins is not None and first["origins"] != list(origins):
            return []
        return [Showing(line["step"], [ShownAnswer(**item) for item in line["answers"]]) for line in lines]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def read_origins(output: Path) -> list[str]:
    """Where the samples that a run shows come from."""
    try:
        with (output / SHOWINGS).open(encoding="utf-8") as file:
            found: Any = json.loads(file.readline())["origins"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [str(item) for item in found]
