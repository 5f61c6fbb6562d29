"""What a run has logged, as curves that stay quick to draw."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LOG = "log.jsonl"
MOST_POINTS = 600
"""Of a curve that a page draws."""
LEFT_OUT = frozenset(
    {"step", "epoch", "total_flos", "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss"}
)
Point = tuple[int, float | None]
"""(optimizer step, value; None where it is no finite number)"""


def read_log(output: Path) -> list[dict[str, Any]]:
    """The reports of a run so far; a line that is half written is left out."""
    try:
        lines = (output / LOG).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [entry for entry in found if isinstance(entry, dict)]


def curves(history: Sequence[Mapping[str, Any]]) -> dict[str, list[Point]]:
    """Every number of the log over the steps, at most ``MOST_POINTS`` of each: peaks and dips are kept."""
    return {key: thinned(points) for key, points in all_points(history).items()}


def all_points(history: Sequence[Mapping[str, Any]]) -> dict[str, list[Point]]:
    """Every number of the log over the steps."""
    found: dict[str, list[Point]] = {}
    for entry in history:
        step = entry.get("step")
        if not isinstance(step, int):
            continue
        for key, value in entry.items():
            if key in LEFT_OUT or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if not key.startswith(("eval_runtime", "eval_samples_per", "eval_steps_per")):
                found.setdefault(key, []).append((step, float(value) if math.isfinite(value) else None))
    return found


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Of each stretch of a curve its lowest and its highest point, and what is no number; the last point is kept."""
    if len(points) <= most:
        return list(points)
    stretches = most // 2
    kept: list[Point] = []
    for number in range(stretches):
        part = points[number * len(points) // stretches : (number + 1) * len(points) // stretches]
        finite = [point for point in part if point[1] is not None]
        ends = {min(finite, key=_value), max(finite, key=_value)} if finite else {part[0]}
        kept += sorted(ends)
    return kept if kept[-1] == points[-1] else [*kept[:-1], points[-1]]


def _value(point: Point) -> float:
    return math.inf if point[1] is None else point[1]
