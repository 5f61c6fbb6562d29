"""How do time and memory grow with the images of a sample, the length of a row, the size of a data set?

    python benchmarks/growth.py                  all three parts and the plot; minutes
    python benchmarks/growth.py --parts start    one of them

Method, on the proportioned model of `feature_cache.py`, tower and merger frozen, 50,176 pixels per image:

    images   one sample of 1 to 64 images and one exchange, forward and backward
    rows     rows of 1k to 32k tokens, packed from the work (workload.py), forward and backward
    start    `triptych index` over 100 to 100,000 samples of the work over 64 files, as a process of its own: with
             empty caches, and again

Seconds are the best of the repeats (a busy machine only adds to them); memory is the process's peak while the row runs,
less what it held before. Each measurement starts from a warm model.
Result: benchmarks/results/growth.jsonl, and docs/images/growth.png (needs matplotlib).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from feature_cache import write_work
from triptych.forward.batch import Batch, build_batch
from triptych.forward.isolation import choose_isolation
from triptych.forward.row_forward import RowForward
from triptych.model.loading import PixelNormalizer
from triptych.planning.plan import BatchSpec, make_plan
from triptych.run.prepare import Prepared, prepare
from triptych.run.settings import RunSettings
from triptych.terminal import Terminal
from triptych.training.setup import load_for_training
from workload import commit, write_pool, write_records

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "growth.jsonl"
PLOT = HERE.parent / "docs" / "images" / "growth.png"
MAX_PIXELS = 50_176
POOL = 64
IMAGES = (1, 2, 4, 8, 16, 32, 64)
TOKENS = (1024, 2048, 4096, 8192, 16_384, 32_768)
SAMPLES = (100, 1000, 10_000, 100_000)


class Runner:
    """A model and rows to run through it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        content = write_work(folder, 8)
        content["model"] = {"path": content["model"]["path"], "freeze": ["vision", "merger"]}
        content["data"] |= {"max_pixels": MAX_PIXELS, "workers": 0}
        self.content = content
        self.names = [f"images/{name}" for name in write_pool(folder / "images", POOL)]
        prepared = self.prepare("train.jsonl")
        isolation = choose_isolation(prepared.files.family, torch.device("cpu"))
        settings = self.settings("train.jsonl").model
        self.model, attention = load_for_training(
            settings, prepared.files.family, torch.float32, torch.device("cpu"), isolation
        )
        self.model.train()
        self.forward = RowForward(PixelNormalizer(prepared.files), isolation, attention)
        self.run(self.row(prepared, [0, 1]))

    def settings(self, data: str) -> RunSettings:
        train = [{"path": str(self.folder / data), "media_dir": str(self.folder)}]
        return RunSettings.model_validate({**self.content, "data": {**self.content["data"], "train": train}})

    def prepare(self, data: str) -> Prepared:
        return prepare(self.settings(data), ("train",), Terminal())

    def row(self, prepared: Prepared, indices: Sequence[int]) -> Batch:
        return build_batch(prepared.corpora["train"], indices, filler=prepared.encoder.template.filler())

    def run(self, row: Batch) -> tuple[float, int]:
        """Seconds of forward and backward, and bytes of the peak above what the process held."""
        self.model.zero_grad()
        ctypes.CDLL(None).malloc_trim(0)  # give back what was freed, so that the row has to ask for it (glibc)
        before = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again (Linux)
        began = time.perf_counter()
        self.forward.summed_loss(self.model, row).backward()
        return time.perf_counter() - began, _memory("VmHWM") - before

    def best(self, row: Batch, repeats: int) -> dict[str, Any]:
        runs = [self.run(row) for _ in range(repeats)]
        return {
            "tokens": row.input_ids.shape[1],
            "patches": len(row.pixels),
            "supervised": len(row.targets),
            "seconds": min(seconds for seconds, _ in runs),
            "bytes": max(peak for _, peak in runs),
        }


def grow_images(runner: Runner, repeats: int) -> list[dict[str, Any]]:
    turns = [
        {"from": "human", "value": "Compare all of them."},
        {"from": "gpt", "value": "the image shows more " * 8},
    ]
    with (runner.folder / "many.jsonl").open("w") as file:
        for count in IMAGES:
            asked = {**turns[0], "value": "<image>" * count + turns[0]["value"]}
            file.write(json.dumps({"conversations": [asked, turns[1]], "images": runner.names[:count]}) + "\n")
    prepared = runner.prepare("many.jsonl")
    return [
        {"images": count, **runner.best(runner.row(prepared, [number]), repeats)} for number, count in enumerate(IMAGES)
    ]


def grow_rows(runner: Runner, repeats: int) -> list[dict[str, Any]]:
    write_records(runner.folder / "long.jsonl", 400, runner.names)
    prepared = runner.prepare("long.jsonl")
    lengths = prepared.corpora["train"].lengths
    found = []
    for budget in TOKENS:
        plan = make_plan(lengths, BatchSpec(tokens=budget), epochs=1, seed=0)
        fullest = max(range(len(plan)), key=lambda number: int(lengths.tokens[plan.row(number)].sum()))
        found.append({"budget": budget, **runner.best(runner.row(prepared, plan.row(fullest).tolist()), repeats)})
    return found


def grow_start(folder: Path, content: dict[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    found = []
    for samples in SAMPLES:
        data = folder / "start.jsonl"
        write_records(data, samples, names)
        train = [{"path": str(data), "media_dir": str(folder)}]
        run = folder / "start.yaml"
        run.write_text(json.dumps({**content, "data": {**content["data"], "train": train}}))  # JSON is YAML
        environment = {**os.environ, "TRIPTYCH_CACHE": str(folder / f"start-{samples}")}
        seconds = []
        for _ in range(2):
            began = time.perf_counter()
            command = [sys.executable, "-m", "triptych", "index", str(run)]
            subprocess.run(command, check=True, env=environment, capture_output=True)
            seconds.append(time.perf_counter() - began)
        found.append({"samples": samples, "first": seconds[0], "second": seconds[1]})
    return found


def _memory(key: str) -> int:
    """Bytes, of this process's own accounts."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def plot(parts: dict[str, list[dict[str, Any]]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure((12, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for axes, part, key, label in (
        (left, "images", "images", "images in the sample"),
        (middle, "rows", "tokens", "tokens in the row"),
    ):
        points = parts.get(part, [])
        across = [point[key] for point in points]
        axes.plot(across, [point["seconds"] for point in points], "o-", label="seconds, forward and backward")
        axes.plot(across, [point["bytes"] / 1e9 for point in points], "s--", label="GB above the model")
        axes.set(xscale="log", yscale="log", xlabel=label)
    points = parts.get("start", [])
    for key, style, label in (("first", "o-", "nothing cached"), ("second", "s--", "again")):
        right.plot([point["samples"] for point in points], [point[key] for point in points], style, label=label)
    right.set(xscale="log", yscale="log", xlabel="samples", ylabel="seconds until indexed, whole process")
    for axes in (left, middle, right):
        axes.grid(visible=True, which="major", alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(PLOT, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what grows with images, row length and data.")
    parser.add_argument("--parts", nargs="+", choices=("images", "rows", "start"), default=["images", "rows", "start"])
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TRIPTYCH_CACHE"] = str(folder / "cache")
        runner = Runner(folder)
        work: dict[str, Callable[[], list[dict[str, Any]]]] = {
            "images": lambda: grow_images(runner, options.repeats),
            "rows": lambda: grow_rows(runner, options.repeats),
            "start": lambda: grow_start(folder, runner.content, runner.names),
        }
        parts = {part: work[part]() for part in options.parts}
    for part, points in parts.items():
        print(part)
        for point in points:
            print("  " + "  ".join(f"{key} {value:,.3g}" for key, value in point.items()))
    entry = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": commit(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        **parts,
    }
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    if len(parts) > 1:
        plot(parts)


if __name__ == "__main__":
    main()
