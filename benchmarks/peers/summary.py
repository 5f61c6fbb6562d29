"""From raw runs to what is printed and kept: what a run says, medians over the rounds, ratios within a round."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

Run = dict[str, Any]
Measures = dict[str, float]
OURS = (("triptych", "default"), ("triptych", "empty caches"))
"""What the others are compared with: training, and starting"""
OWN_ROWS = ("neat packing",)
"""Ways that put other samples together than the others do"""
TOKENS_APART = 0.1

COLUMNS: dict[str, tuple[str, str, float]] = {
    "start_seconds": ("first step s", "{:.1f}", 1),
    "step_seconds": ("s/step", "{:.2f}", 1),
    "median_step_seconds": ("median", "{:.2f}", 1),
    "supervised_per_second": ("superv./s", "{:.0f}", 1),
    "tokens_per_second": ("tokens/s", "{:,.0f}", 1),
    "padding": ("padding", "{:.0%}", 1),
    "data_wait": ("data wait", "{:.1%}", 1),
    "peak_bytes": ("peak GB", "{:.1f}", 1e-9),
    "start_ratio": ("start", "{:.1f} x", 1),
    "speedup": ("steps", "{:.2f} x", 1),
}
"""Heading, form and scale of what the table shows; the last two are how many times Triptych is as fast"""


def measures(run: Run, *, whole_epoch: bool) -> Measures:
    """What a run says; times in seconds.

    The first step warms up and is not timed, unless the whole epoch is. A step lasts from the end of the one before to
    its own end, the fetching of its batches included.
    """
    found: Measures = {"peak_bytes": run["peak_bytes"], "start_seconds": run["start_seconds"]}
    steps = [step for step in run["steps"] if "ended" in step]
    first = 0 if whole_epoch else 1
    return found | (_timed(steps, first) if len(steps) > first else {})


def _timed(steps: Sequence[dict[str, float]], first: int) -> Measures:
    """Over the steps from number ``first`` on."""
    began = steps[first - 1]["ended"] if first else steps[0]["began"]
    timed = steps[first:]
    ends = [began, *(step["ended"] for step in timed)]
    seconds = ends[-1] - ends[0]
    sums = {key: sum(step[key] for step in timed) for key in ("slots", "tokens", "supervised")}
    waits = (step["began"] - end for step, end in zip(timed, ends, strict=False))
    return {
        "step_seconds": seconds / len(timed),
        "median_step_seconds": statistics.median(after - before for before, after in pairwise(ends)),
        "supervised_per_second": sums["supervised"] / seconds,
        "tokens_per_second": sums["tokens"] / seconds,
        "padding": 1 - sums["tokens"] / sums["slots"],
        "data_wait": sum(waits) / seconds,
    }


def summarise(runs: Sequence[Run], *, whole_epoch: bool) -> dict[str, dict[str, Any]]:
    """Medians over the rounds of each way to run each tool, by ``tool, variant``; ``error`` where it never ran.

    Of the ratios, ``speedup`` is Triptych's supervised tokens per second in a round over the tool's in the same round,
    ``start_ratio`` the tool's time to the first step over Triptych's.
    """
    rounds: dict[tuple[str, str], dict[int, Measures]] = {}
    errors: dict[tuple[str, str], str] = {}
    for run in runs:
        way = (run["tool"], run["variant"])
        rounds.setdefault(way, {})
        if "error" in run:
            errors[way] = run["error"]
        else:
            rounds[way][run["round"]] = measures(run, whole_epoch=whole_epoch)
    ours = next((rounds[way] for way in OURS if way in rounds), {})
    summary: dict[str, dict[str, Any]] = {}
    for way, theirs in rounds.items():
        with_ratios = [{**found, **_ratios(ours.get(number, {}), found)} for number, found in theirs.items()]
        entry = {key: [found[key] for found in with_ratios if key in found] for key in COLUMNS}
        summary[", ".join(way)] = {key: statistics.median(values) for key, values in entry.items() if values}
        if way in errors:
            summary[", ".join(way)]["error"] = errors[way]
    return summary


def _ratios(ours: Measures, theirs: Measures) -> Measures:
    key = "supervised_per_second"
    found = {"speedup": ours[key] / theirs[key]} if key in ours and key in theirs else {}
    if "start_seconds" in ours:
        found["start_ratio"] = theirs["start_seconds"] / ours["start_seconds"]
    return found


def disagreements(runs: Sequence[Run]) -> list[str]:
    """Where a tool did not train on the samples that Triptych took in the same step.

    Targets and images must be as many; tokens may differ by ``TOKENS_APART``, since tools round the sizes of images
    differently.
    """
    good = [run for run in runs if "error" not in run and run["variant"] not in OWN_ROWS]
    ours = next((run["steps"] for run in good if (run["tool"], run["variant"]) in OURS), [])
    found = []
    for run in good:
        name = f"{run['tool']}, {run['variant']}, round {run['round']}"
        if len(run["steps"]) < len(ours):
            found.append(f"{name}: {len(run['steps'])} steps instead of {len(ours)}")
        for number, (our, their) in enumerate(zip(ours, run["steps"], strict=False)):
            same = our["supervised"] == their["supervised"] and our["images"] == their["images"]
            if not same or abs(their["tokens"] / our["tokens"] - 1) > TOKENS_APART:
                counts = ", ".join(f"{their[key]} {key} for {our[key]}" for key in ("supervised", "images", "tokens"))
                found.append(f"{name}, step {number}: {counts}")
    return found


def table(case: str, summary: dict[str, dict[str, Any]]) -> str:
    """The summary of a case for people."""
    lines = ["", f"{case:32}" + "".join(f"{head:>13}" for head, _, _ in COLUMNS.values())]
    for way, entry in summary.items():
        cells = [form.format(entry[key] * scale) if key in entry else "" for key, (_, form, scale) in COLUMNS.items()]
        lines.append(f"{way:32}" + "".join(f"{cell:>13}" for cell in cells))
        if "error" in entry:
            lines.append(f"    failed: {entry['error']}")
    return "\n".join(lines)
