"""Who is told how the work goes: a terminal, a log, or a function of the caller's. Nothing below commands prints."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from triptych.corpus.examine import CheckReport
from triptych.corpus.execution.progress import Progress
from triptych.errors import Problem, counts, printable

Row = Sequence[str]
Advance = Callable[[int], None]
"""Called with how much was done since the last call."""
OnProgress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

# Key in the logs -> (head, width, format) of the log's columns, in their order: the last ones need a wide terminal.
LOG_COLUMNS: dict[str, tuple[str, int, str]] = {
    "epoch": ("epoch", 6, ".2f"),
    "loss": ("loss", 8, ".4f"),
    "learning_rate": ("rate", 8, ".1e"),
    "grad_norm": ("grad", 7, ".3f"),
    "tokens_per_second": ("tokens/s", 9, ",.0f"),
    "images_per_second": ("images/s", 8, ",.1f"),
    "row_fill": ("fill", 6, ".0%"),
    "data_wait": ("wait", 5, ".0%"),
    "mfu": ("MFU", 5, ".0%"),
    "supervised_tokens_per_second": ("targets/s", 10, ",.0f"),
    "stored_images": ("stored", 7, ".0%"),
}
HEAD_EVERY = 20
"""Log lines between two heads."""
WIDE = 120
"""Columns of what goes to no terminal."""

CONTROL_EXAMPLES = "<|im_end|> and <|image_pad|>"


class Reporter(Protocol):
    """Who is told how the work goes. Texts are plain: nothing in them is markup."""

    width: int
    """Characters that a line has room for"""

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
        self.width = WIDE
        self._progress = progress
        self._logger = logging.getLogger("triptych")

    def line(self, text: str) -> None:
        """See ``Reporter``."""
        self._logger.info("%s", printable(text, lines=True))

    def table(self, title: str, columns: Row, rows: Sequence[Row], *, sentences: bool = False) -> None:  # noqa: ARG002
        """See ``Reporter``."""
        cells = [[printable(cell) for cell in row] for row in ((title,), columns, *rows)]
        self._logger.info("%s", "\n".join("\t".join(row) for row in cells))

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
    """See ``triptych.corpus.execution.progress.Progress``."""

    def __init__(self, name: str, progress: OnProgress | None) -> None:
        self._name, self._progress = name, progress
        self._phase: _Counter | None = None

    def phase(self, description: str, total: int, unit: str) -> None:
        self._phase = _Counter(f"{self._name}: {description} ({unit})", total, self._progress)

    def advance(self, done: int) -> None:
        if self._phase is not None:
            self._phase.advance(done)

    def found(self, problem: Problem) -> None:
        """All problems are in the report."""


class LogLines:
    """A run's log in columns of fixed width, as many as a line has room for; the head comes again now and then."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._columns: list[str] = []
        self._since_head = 0

    def lines(self, logs: Mapping[str, Any], step: int, steps: int) -> list[str]:
        """What to print for one report."""
        place = f"{step}/{steps}".rjust(2 * len(str(steps)) + 1)
        if logs.get("eval_loss") is not None:
            return [f"{place}  held-out loss {logs['eval_loss']:.4f}"]
        lines = []
        if not self._columns or self._since_head == HEAD_EVERY:
            self._columns = self._fitting(logs, len(place))
            heads = (LOG_COLUMNS[key][0].rjust(LOG_COLUMNS[key][1]) for key in self._columns)
            lines.append(" ".join(["step".rjust(len(place)), *heads]))
            self._since_head = 0
        self._since_head += 1
        values = (_cell(logs.get(key), *LOG_COLUMNS[key][1:]) for key in self._columns)
        lines.append(" ".join([place, *values]))
        if logs.get("lost_samples"):
            lines.append(f"{place}  lost samples: {logs['lost_samples']:,}")
        return lines

    def _fitting(self, logs: Mapping[str, Any], used: int) -> list[str]:
        """The columns that there is something for, and room."""
        found = []
        for key, (_, width, _) in LOG_COLUMNS.items():
            if logs.get(key) is not None and used + 1 + width <= self._width:
                found.append(key)
                used += 1 + width
        return found


def _cell(value: Any, width: int, form: str) -> str:
    return ("-" if value is None else f"{value:{form}}").rjust(width)


def report_line(report: CheckReport) -> str:
    """The counts of an examination in one line."""
    parts = [f"{report.samples:,} samples, {report.ok:,} ok"]
    if report.problems:
        parts.append(f"{len(report.problems):,} problems ({counts(report.problems)})")
    if report.dropped:
        parts.append(f"{len(report.dropped):,} dropped as too long")
    if report.shrunk:
        parts.append(f"images of {report.shrunk:,} shrunk to keep the budget")
    if report.thinking_dropped:
        parts.append(
            f"thinking of {report.thinking_dropped:,} answers left out (the chat template keeps that of the last ones)"
        )
    if report.control_texts:
        parts.append(f"{report.control_texts:,} control-token strings such as {CONTROL_EXAMPLES} taken as text")
    if report.weighted:
        parts.append(f"{report.weighted:,} with loss weights other than 1")
    return ", ".join(parts)
