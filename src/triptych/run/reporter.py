"""Who is told how the work goes: a terminal, a log, or a function of the caller's. Nothing below commands prints."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from triptych.corpus.examine import Census
from triptych.corpus.progress import Progress
from triptych.errors import Problem, counts

Row = Sequence[str]
Advance = Callable[[int], None]
"""Called with how much was done since the last call."""
OnProgress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

# Key in the logs -> (label, format) of the log line, in its order.
LOG_LINE: dict[str, tuple[str, str]] = {
    "loss": ("loss", ".4f"),
    "eval_loss": ("eval loss", ".4f"),
    "learning_rate": ("lr", ".2e"),
    "grad_norm": ("grad norm", ".3f"),
    "tokens_per_second": ("tokens/s", ",.0f"),
    "images_per_second": ("images/s", ",.1f"),
    "supervised_tokens_per_second": ("supervised/s", ",.0f"),
    "row_fill": ("fill", ".1%"),
    "data_wait": ("data wait", ".1%"),
    "stored_images": ("stored images", ".1%"),
    "mfu": ("MFU", ".1%"),
    "lost_samples": ("lost samples", "d"),
}

CONTROL_EXAMPLES = "<|im_end|> and <|image_pad|>"


class Reporter(Protocol):
    """Who is told how the work goes. Texts are plain: nothing in them is markup."""

    def line(self, text: str) -> None:
        """A sentence, or several lines."""

    def table(self, title: str, columns: Row, rows: Sequence[Row], *, sentences: bool = False) -> None:
        """Numbers, or ``sentences``; the first column names them."""

    def bar(self, description: str, total: int) -> AbstractContextManager[Advance]:
        """Work of ``total`` steps goes on while this is open."""

    def watch(self, name: str) -> AbstractContextManager[Progress]:
        """Records and images of ``name`` are examined while this is open."""


class LogReporter:
    """Writes to the logger ``triptych``, and tells a function how far the work is."""

    def __init__(self, progress: OnProgress | None = None) -> None:
        self._progress = progress
        self._logger = logging.getLogger("triptych")

    def line(self, text: str) -> None:
        """See ``Reporter``."""
        self._logger.info("%s", text)

    def table(self, title: str, columns: Row, rows: Sequence[Row], *, sentences: bool = False) -> None:  # noqa: ARG002
        """See ``Reporter``."""
        self._logger.info("%s", "\n".join((title, "\t".join(columns), *("\t".join(row) for row in rows))))

    @contextmanager
    def bar(self, description: str, total: int) -> Iterator[Advance]:
        """See ``Reporter``."""
        yield _Counter(description, total, self._progress).advance

    @contextmanager
    def watch(self, name: str) -> Iterator[Progress]:
        """See ``Reporter``."""
        yield _Examination(name, self._progress)


class _Counter:
    """Adds up what is done."""

    def __init__(self, description: str, total: int, progress: OnProgress | None) -> None:
        self.description, self.total, self.done = description, total, 0
        self._progress = progress

    def advance(self, done: int) -> None:
        self.done += done
        if self._progress is not None:
            self._progress(self.description, self.done, self.total)


class _Examination:
    """See ``triptych.corpus.progress.Progress``."""

    def __init__(self, name: str, progress: OnProgress | None) -> None:
        self._name, self._progress = name, progress
        self._phase: _Counter | None = None

    def phase(self, description: str, total: int, unit: str) -> None:
        self._phase = _Counter(f"{self._name}: {description} ({unit})", total, self._progress)

    def advance(self, done: int) -> None:
        if self._phase is not None:
            self._phase.advance(done)

    def found(self, problem: Problem) -> None:
        """All problems are in the census."""


def log_line(logs: Mapping[str, Any], step: int, steps: int) -> str:
    """One line of a run's log."""
    parts = [f"step {step}/{steps}"]
    if "epoch" in logs:
        parts.append(f"epoch {logs['epoch']:.2f}")
    parts += [f"{label} {logs[key]:{form}}" for key, (label, form) in LOG_LINE.items() if logs.get(key) is not None]
    return "  ".join(parts)


def census_line(census: Census) -> str:
    """The counts of an examination in one line."""
    parts = [f"{census.samples:,} samples, {census.ok:,} ok"]
    if census.problems:
        parts.append(f"{len(census.problems):,} problems ({counts(census.problems)})")
    if census.dropped:
        parts.append(f"{len(census.dropped):,} dropped as too long")
    if census.shrunk:
        parts.append(f"images of {census.shrunk:,} shrunk to keep the budget")
    if census.unshown:
        parts.append(f"thinking of {census.unshown:,} answers left out (the chat template keeps that of the last ones)")
    if census.control_texts:
        parts.append(f"{census.control_texts:,} control-token strings such as {CONTROL_EXAMPLES} taken as text")
    return ", ".join(parts)
