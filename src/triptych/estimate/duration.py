"""How long a run will take, and where the number comes from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from triptych.estimate.devices import Target
from triptych.estimate.forecast import RowSums
from triptych.planning.cost import UNIT
from triptych.reports.history import LOG

ASSUMED_SHARE = 0.25
"""Of the device's peak rate, where nothing was measured: an H200 was measured at 22 to 34% (docs/benchmarks.md)."""
RECOMPUTED = 4 / 3
"""FLOPs under gradient checkpointing, relative to without."""


@dataclass(frozen=True, slots=True)
class Duration:
    """A time and its source."""

    seconds: float | None
    """None where nothing is known to estimate from"""
    source: str
    """For people"""

    def __str__(self) -> str:
        if self.seconds is None:
            return f"not known: {self.source}"
        return f"{shown(self.seconds)} ({self.source})"


def estimate(
    costs: int, rows: RowSums, target: Target, *, checkpointing: bool, output: Path, ranks: int = 1
) -> Duration:
    """Time of all rows: from an earlier log of this run where there is one, else from FLOPs and the device's peak.

    Args:
        costs: of all rows together, millions of FLOPs.
        rows: of the run.
        target: the device; of several, each.
        checkpointing: whether activations are computed twice.
        output: the run's folder.
        ranks: devices that share the rows.
    """
    rate = logged_rate(output / LOG) if target.here else None
    if rate is not None:
        return Duration(float(rows.tokens.sum()) / rate, f"{rate:,.0f} tokens/s, measured in {output / LOG}")
    if target.peak is None:
        return Duration(None, f"{target.name} was not measured; --dry-run-worst runs a row")
    flops = costs * UNIT * (RECOMPUTED if checkpointing else 1)
    source = f"assumed: {ASSUMED_SHARE:.0%} of {target.peak / 1e12:,.0f} TFLOP/s; not measured"
    return Duration(flops / (target.peak * ASSUMED_SHARE * ranks), source)


def from_row(seconds: float, row_cost: int, costs: int) -> Duration:
    """Time of a run from the measured time of one of its rows, in proportion to FLOPs."""
    return Duration(seconds * costs / max(1, row_cost), "from the dry run of one row, its first: an upper bound")


def logged_rate(path: Path) -> float | None:
    """Median of the tokens per second in a run's log; None where there is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rates = [entry["tokens_per_second"] for entry in map(json.loads, lines) if entry.get("tokens_per_second")]
    except (OSError, ValueError, AttributeError):
        return None
    return float(np.median(rates)) if rates else None


def shown(seconds: float) -> str:
    """A time for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
