"""Who watches an examination: bars and first problems, or nobody."""

from __future__ import annotations

from typing import Protocol

from triptych.errors import Problem


class Progress(Protocol):
    """Who watches an examination."""

    def phase(self, description: str, total: int, unit: str) -> None:
        """A new kind of work begins: ``total`` bytes or images."""

    def advance(self, done: int) -> None:
        """So much of it is done."""

    def found(self, problem: Problem) -> None:
        """A problem, as soon as it is known; what an image causes is told once, at its first sample."""


class Silent:
    """Nobody watches."""

    def phase(self, description: str, total: int, unit: str) -> None:
        """See ``Progress``."""

    def advance(self, done: int) -> None:
        """See ``Progress``."""

    def found(self, problem: Problem) -> None:
        """See ``Progress``."""
