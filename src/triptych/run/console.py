"""What the user sees: problems, tables, progress, and one log line per report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

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

from triptych.corpus.examine import Census
from triptych.errors import Problem, counts, fold

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


def console() -> Console:
    """Console for people: standard error, so that standard output stays clean for machines."""
    # Without emoji=False the place `data.jsonl:100:` would turn into an image.
    return Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def log_line(logs: Mapping[str, Any], step: int, steps: int) -> str:
    """One line of a run's log."""
    parts = [f"step {step}/{steps}"]
    if "epoch" in logs:
        parts.append(f"epoch {logs['epoch']:.2f}")
    parts += [f"{label} {logs[key]:{form}}" for key, (label, form) in LOG_LINE.items() if logs.get(key) is not None]
    return "  ".join(parts)


def print_problems(out: Console, census: Census, *, everything: bool = False) -> None:
    """Print problems, one per line, and what would help: of a code with many only some, unless ``everything``."""
    found = census.problems
    for line in map(str, found) if everything else fold(found):
        out.print(line, markup=False)
    for hint in census.hints:
        out.print(hint, markup=False, style="bold")


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


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A small table; the first column is left-aligned, the others right-aligned."""
    result = Table(title=title, title_justify="left", title_style="bold")
    for number, name in enumerate(columns):
        if number == 0:
            result.add_column(name, overflow="fold")  # a long path is shown whole
        else:
            result.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        result.add_row(*row)
    return result


@contextmanager
def watching(name: str, out: Console) -> Iterator[Watcher]:
    """Bars for the phases of an examination, with rate and time left; first problems as they are found."""
    with Progress(*_columns(), console=out, transient=True, disable=not out.is_terminal) as progress:
        yield Watcher(name, progress)


class Watcher:
    """Shows an examination as it goes on; see ``triptych.corpus.progress.Progress``."""

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
    return [TextColumn("{task.description}"), BarColumn(), _Rate(), TimeElapsedColumn(), TimeRemainingColumn()]


class _Rate(ProgressColumn):
    """How much is done, of how much, and how fast."""

    def render(self, task: RichTask) -> Text:
        scale, unit = task.fields["scale"], task.fields["unit"]
        rate = f"  {task.speed / scale:,.0f} {unit}/s" if task.speed else ""
        return Text(f"{task.completed / scale:,.0f}/{(task.total or 0) / scale:,.0f} {unit}{rate}")


@contextmanager
def bar(description: str, total: int, out: Console) -> Iterator[Callable[[int], None]]:
    """A progress bar with time left; call the yielded function with the number of steps done since the last call."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as progress:
        task = progress.add_task(description, total=total)
        yield lambda done: progress.advance(task, done)
