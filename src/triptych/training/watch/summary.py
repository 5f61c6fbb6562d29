"""After a run: its loss curve as an image and its figures as a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from triptych.planning.plan import Plan
from triptych.run.reporter import Reporter

CURVE = "loss.png"
SUMMARY = "summary.json"


def write_summary(output: Path, history: Sequence[Mapping[str, Any]], plan: Plan, lost: int, out: Reporter) -> None:
    """Write ``summary.json`` and, where matplotlib is installed, ``loss.png``; print the figures."""
    losses = [entry["loss"] for entry in history if "loss" in entry]
    held_out = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    rates = [entry["supervised_tokens_per_second"] for entry in history if "supervised_tokens_per_second" in entry]
    waits = [entry["data_wait"] for entry in history if "data_wait" in entry]
    runtime = next((entry["train_runtime"] for entry in reversed(history) if "train_runtime" in entry), None)
    summary = {
        "steps": max((entry.get("step", 0) for entry in history), default=0),
        "rows": len(plan),
        "epochs": round(plan.epochs, 2),
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "last_eval_loss": held_out[-1] if held_out else None,
        "seconds": runtime,
        "supervised_tokens_per_second": sum(rates) / len(rates) if rates else None,
        "data_wait": sum(waits) / len(waits) if waits else None,
        "lost_samples": lost,
        "model": str(output / "final"),
    }
    (output / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    rows = [(key.replace("_", " "), _shown(value)) for key, value in summary.items() if value is not None]
    out.table("Run", ("figure", "value"), rows)
    if draw_losses(history, output / CURVE):
        out.line(f"loss curve: {output / CURVE}")
    else:
        out.line("no loss curve: install triptych[track] for it")


def draw_losses(history: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Draw training and evaluation loss over the steps; False without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "held out", "o-")):
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("cross entropy per supervised token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    return True


def _shown(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
