"""What people see on a terminal: lines, tables, problems and progress."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as RichTask
from rich.table import Table
from rich.text import Text

from triptych.corpus.examine import CheckReport
from triptych.errors import Problem, fold, printable
from triptych.run.reporter import WIDE, Advance, Row


class Terminal:
    """Tells people how the work goes; a ``triptych.run.reporter.Reporter``.

    On standard error, so that standard output stays clean for machines. Control characters are shown, not obeyed.
    """

    def __init__(self) -> None:
        # On a terminal, lines break between words; what is piped stays one line per message.
        # Without emoji=False the place `data.jsonl:100:` would turn into a picture.
        wrapped = sys.stderr.isatty()
        self.console = Console(stderr=True, highlight=False, soft_wrap=not wrapped, emoji=False)
        self.width = self.console.width if wrapped else WIDE

    def line(self, text: str) -> None:
        """A sentence, or several lines; what is longer than the terminal goes on indented, broken between words."""
        self.console.print(self._fitted(text), markup=False, soft_wrap=True)

    def _fitted(self, text: str) -> str:
        shown = printable(text, lines=True)
        return (
            shown
            if self.console.soft_wrap
            else "\n".join(_folded(line, self.console.width) for line in shown.split("\n"))
        )

    def table(self, title: str, columns: Row, rows: Sequence[Row], *, sentences: bool = False) -> None:
        """See ``table``."""
        self.show(table(title, columns, rows, sentences=sentences))

    def show(self, made: Table | Text) -> None:
        """A table, or text with styles, that is made already."""
        self.console.print(made)

    def problems(self, report: CheckReport, *, everything: bool = False) -> None:
        """Problems, one per line, and what would help: of a code with many only some, unless ``everything``."""
        found = report.problems
        for line in map(str, found) if everything else fold(found):
            self.line(line)
        for hint in report.hints:
            self.console.print(self._fitted(hint), markup=False, style="bold", soft_wrap=True)

    @contextmanager
    def watch(self, name: str) -> Iterator[Watcher]:
        """Bars for the phases of an examination, with rate and time left; first problems as they are found."""
        with self._progress(*_columns()) as progress:
            yield Watcher(name, progress)

    @contextmanager
    def bar(self, description: str, total: int) -> Iterator[Advance]:
        """A progress bar with time left; call what is yielded with the number of steps done since the last call."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with self._progress(*columns) as progress:
            task = progress.add_task(description, total=total)
            yield lambda done: progress.advance(task, done)

    def _progress(self, *columns: ProgressColumn) -> Progress:
        return Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)


def _folded(line: str, width: int) -> str:
    """``line`` in as many lines as it takes; a word that is longer, such as a path, stays whole."""
    if len(line) <= width:
        return line
    own = line[: len(line) - len(line.lstrip())]
    folded = textwrap.wrap(
        line, width, subsequent_indent=own + "  ", break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    )
    return "\n".join(folded)


FOLDED = 32
"""Characters; longer cells of a table are folded where the terminal is narrow."""


def table(title: str, columns: Row, rows: Sequence[Row], *, sentences: bool = False) -> Table:
    """A small table; the first column is left-aligned, the others right-aligned, or wrapped if they are sentences.

    A narrow terminal folds long cells, such as paths, before it folds names and numbers.
    """
    longest = [max((len(row[number]) for row in rows), default=0) for number in range(len(columns))]
    result = Table(title=Text(printable(title)), title_justify="left", title_style="bold")
    for number, name in enumerate(columns):
        short = longest[number] <= FOLDED
        if number == 0 or sentences:
            result.add_column(name, overflow="fold", no_wrap=short and not sentences)
        else:
            result.add_column(name, justify="right", overflow="fold", no_wrap=short)
    for row in rows:
        result.add_row(*(Text(printable(cell)) for cell in row))
    return result


class Watcher:
    """Shows an examination as it goes on; see ``triptych.corpus.execution.progress.Progress``."""

    SHOWN = 5
    """Problems shown before the end; all are listed there."""
    PATIENCE = 2.0
    """Seconds before problems are shown: a short examination lists them at once."""

    def __init__(self, name: str, progress: Progress) -> None:
        self._name = name
        self._progress = progress
        self._task: TaskID | None = None
        self._shown = 0
        self._began = time.monotonic()
        self._pending = 0
        self._moved = 0.0

    def phase(self, description: str, total: int, unit: str) -> None:
        """A new kind of work begins: ``total`` bytes or images."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        scale = 1e6 if unit == "bytes" else 1.0
        shown = "MB" if unit == "bytes" else unit
        self._task = self._progress.add_task(f"{self._name}: {description}", total=total, unit=shown, scale=scale)
        self._pending = 0

    def advance(self, done: int) -> None:
        """So much of it is done."""
        self._pending += done
        now = time.monotonic()
        if self._task is not None and now - self._moved > 0.1:
            self._progress.advance(self._task, self._pending)
            self._pending, self._moved = 0, now

    def found(self, problem: Problem) -> None:
        """Show the first problems of a long examination."""
        if self._shown < self.SHOWN and time.monotonic() - self._began > self.PATIENCE:
            self._shown += 1
            if not self._progress.disable:
                self._progress.console.print(f"found: {problem}", markup=False)


def _columns() -> list[ProgressColumn]:
    # 80 characters hold all of it.
    return [TextColumn("{task.description}"), BarColumn(20), _Rate(), TimeRemainingColumn()]


class _Rate(ProgressColumn):
    """How much is done, of how much, and how fast."""

    def render(self, task: RichTask) -> Text:
        scale, unit = task.fields["scale"], task.fields["unit"]
        rate = f" {task.speed / scale:,.0f}/s" if task.speed else ""
        return Text(f"{task.completed / scale:,.0f}/{(task.total or 0) / scale:,.0f} {unit}{rate}")
