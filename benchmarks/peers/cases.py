"""What is compared: the cases, and what a run of one of them by one tool is given and gives back."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import process
from models import write_model
from samples import SAMPLES_PER_STEP, SEED, write_data
from settings import Variant

DRIVERS = Path(__file__).parent / "drivers"
MAX_TOKENS = 4096
SPEC, SMALL = 262_144, 50_176
"""Pixels per image: what the peers were first measured with, and about a fifth of it."""


@dataclass(frozen=True, slots=True)
class Case:
    """A model, samples, and what of training on them is measured."""

    name: str
    model: str
    max_pixels: int
    samples: int
    """Of one epoch"""
    files: int = 400
    """Images in the pool"""
    steps: int = 1
    """Optimizer steps that every tool takes; the first one is not timed"""
    whole_epoch: bool = False
    """The first one is timed, too"""
    start_only: bool = False
    """Ends where the first step would begin"""


CASES = {
    case.name: case
    for case in (
        # The work of 1,000 samples over 400 files in miniature: every image is shown as often in an epoch.
        Case("tiny-spec", "tiny", SPEC, samples=12, files=5, steps=3),
        Case("tiny-small", "tiny", SMALL, samples=24, files=10, steps=6),
        Case("proportioned", "proportioned", SPEC, samples=16, files=6, steps=4, whole_epoch=True),
        *(Case(f"start-{count}", "tiny", SPEC, samples=count, start_only=True) for count in (1000, 5000, 100_000)),
        Case("refused", "tiny", SMALL, samples=8, start_only=True),
    )
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a comparison happens."""

    work: Path
    """Models, data, the log of runs"""
    pythons: dict[str, Path]
    """The python of each tool"""
    tokenizer: Path


def run_case(case: Case, variant: Variant, round_number: int, place: Place, limit: float) -> dict[str, Any]:
    """Run ``case`` once by one tool, nothing cached unless the variant is a second start.

    Returns:
        What is known of the run: its key, ``start_seconds``, ``steps`` as the meter wrote them (times since the process
        was started), ``peak_bytes``, and an ``error`` if it failed.
    """
    model = place.work / "models" / f"{case.model}-{case.max_pixels}"
    write_model(model, case.model, place.tokenizer, case.max_pixels)
    data = write_data(place.work, case.samples, case.files)
    scratch, caches = place.work / "run", place.work / "caches" / f"{case.name}-{variant.tool}"
    shutil.rmtree(scratch, ignore_errors=True)
    if not variant.second_start:
        shutil.rmtree(caches, ignore_errors=True)
    scratch.mkdir()
    content = {
        "model": str(model),
        "data": str(data[variant.tool]),
        "media_dir": str(place.work),
        "max_pixels": case.max_pixels,
        "max_tokens": MAX_TOKENS,
        "samples_per_step": SAMPLES_PER_STEP,
        "steps": case.steps,
        "seed": SEED,
        "start_only": case.start_only,
        "settings": variant.settings,
        "output": str(scratch / "output"),
        "events": str(scratch / "events.jsonl"),
    }
    (scratch / "run.json").write_text(json.dumps(content))
    driver = DRIVERS / f"drive_{variant.tool}.py"
    command = [str(place.pythons[variant.tool]), str(driver), str(scratch / "run.json")]
    environment = {**_environment(caches, variant.tool), **variant.environment}
    finished = process.run(command, scratch / "output.txt", environment, limit)
    key = {"case": case.name, "tool": variant.tool, "variant": variant.name, "round": round_number}
    return {**key, **_result(finished, scratch)}


def _environment(caches: Path, tool: str) -> dict[str, str]:
    """Every tool's caches in ``caches``, and no look outside this machine."""
    return {
        "TRIPTYCH_CACHE": str(caches / "triptych"),
        "HF_HOME": str(caches / "hf"),
        "MODELSCOPE_CACHE": str(caches / "modelscope"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.environ.get("PYTHONPATH", "") if tool == "triptych" else "",
    }


def _result(finished: process.Finished, scratch: Path) -> dict[str, Any]:
    events = scratch / "events.jsonl"
    steps = [json.loads(line) for line in events.read_text().splitlines()] if events.exists() else []
    for step in steps:
        for mark in {"began", "ended"} & step.keys():
            step[mark] -= finished.began
    result = {"seconds": finished.seconds, "peak_bytes": finished.peak_bytes, "steps": steps}
    if steps:
        result["start_seconds"] = steps[0]["began"]
    if finished.code != 0 or not steps:
        ended = "ended for taking too long" if finished.code is None else f"ended with status {finished.code}"
        output = (scratch / "output.txt").read_text(encoding="utf-8", errors="replace")
        result["error"] = _first_error_line(output) or ended
    return result


def _first_error_line(output: str) -> str | None:
    """The line that names the error a run ended with."""
    lines = re.findall(r"^\w[\w.]*(?:Error|Exception): .+$", output, re.MULTILINE)
    return lines[-1].strip() if lines else None
