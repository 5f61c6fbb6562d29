"""What the user sees: problems, tables, progress, and one log line per report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from triptych.data.samples import Census
from triptych.errors import Problem

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
    "mfu": ("MFU", ".1%"),
    "lost_samples": ("lost samples", "d"),
}


def console() -> Console:
    """Console for people: standard error, so that standard output stays clean for machines."""
    # Without emoji=False the place `data.jsonl:100:` would turn into a picture.
    return Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def log_line(logs: Mapping[str, Any], step: int, steps: int) -> str:
    """One line of a run's log."""
    parts = [f"step {step}/{steps}"]
    if "epoch" in logs:
        parts.append(f"epoch {logs['epoch']:.2f}")
    parts += [f"{label} {logs[key]:{form}}" for key, (label, form) in LOG_LINE.items() if logs.get(key) is not None]
    return "  ".join(parts)


def print_problems(out: Console, problems: Sequence[Problem]) -> None:
    """Print problems, one per line."""
    for problem in problems:
        out.print(str(problem), markup=False)


def census_line(census: Census) -> str:
    """The counts of an examination in one line."""
    parts = [f"{census.samples:,} samples, {census.ok:,} ok"]
    if census.problems:
        parts.append(f"{len(census.problems):,} problems")
    if census.dropped:
        parts.append(f"{len(census.dropped):,} dropped as too long")
    if census.shrunk:
        parts.append(f"images of {census.shrunk:,} shrunk to keep the budget")
    return ", ".join(parts)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A small table; the first column is left-aligned, the others right-aligned."""
    result = Table(title=title, title_justify="left", title_style="bold")
    for number, name in enumerate(columns):
        result.add_column(name, justify="left" if number == 0 else "right")
    for row in rows:
        result.add_row(*row)
    return result


@contextmanager
def counting(description: str, out: Console) -> Iterator[Callable[[Census], None]]:
    """A running count of examined samples, shown while the work lasts."""
    columns = (TextColumn("{task.description}"), TextColumn("{task.completed:,.0f} samples"), TimeElapsedColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as progress:
        task = progress.add_task(description, total=None)

        def update(census: Census) -> None:
            if census.samples % 64 == 0:
                progress.update(task, completed=census.samples)

        yield update


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
