"""Does training wait for images, and does our loader keep up with torch's?

*wait*: the proportioned model of `feature_cache.py` (LoRA, the feature cache off) trains on the work (workload.py) at
262,144 pixels per image with two workers, which decode several times as fast as the model learns; `data_wait` of the
run's own log, the first line aside, in which the workers start.

*rate*: rows of one to eight images, as the work mixes them, taken as fast as they come: out of the row loader, and
out of torch's `DataLoader` over the same rows with as many workers (two rows ahead each, forked, which is its
default). Start-up is left out, the sides take turns; images per second, medians over the rounds. Also the most
bytes that the row loader ever had ahead, which must not be over its budget.

    python benchmarks/loader.py

Result: benchmarks/results/loader.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from feature_cache import write_work
from triptych.forward.batch import RowDataset
from triptych.planning.plan import BatchSpec, Plan, make_plan
from triptych.rows.builder import RowBuilder
from triptych.rows.loader import Loading, RowLoader
from triptych.run.prepare import prepare
from triptych.run.settings import RunSettings
from triptych.terminal import Terminal
from triptych.training.train import train
from workload import commit

RESULTS = Path(__file__).parent / "results" / "loader.jsonl"
BUDGET = 64 * 2**20


def settings_of(content: dict[str, Any], folder: Path, samples: int) -> RunSettings:
    settings = {**content["train"], "epochs": 1, "feature_cache": "off", "log_every": 1}
    output = str(folder / f"run-{samples}")
    return RunSettings.model_validate({**content, "train": settings, "output": output})


def waiting(settings: RunSettings) -> list[float]:
    """``data_wait`` of each line of the run's log but the first."""
    train(settings, prepare(settings, ("train",), Terminal()), Terminal())
    lines = [json.loads(line) for line in (Path(settings.output) / "log.jsonl").read_text().splitlines()]
    return [line["data_wait"] for line in lines if "loss" in line][1:]


def ours(plan: Plan, builder: RowBuilder, workers: int) -> tuple[float, int]:
    """Images per second after the first rows, and the most bytes ahead."""
    loader = RowLoader(plan, builder, Loading(workers, BUDGET))
    most = 0
    for number in range(2 * workers):
        loader.take(number)
    began, images = time.perf_counter(), 0
    for number in range(2 * workers, len(plan)):
        most = max(most, loader.bytes_ahead)
        images += len(loader.take(number).image_grid_thw)
    seconds = time.perf_counter() - began
    loader.close()
    return images / seconds, most


def torchs(plan: Plan, builder: RowBuilder, workers: int) -> float:
    """Images per second out of torch's ``DataLoader``."""
    rows = RowDataset(plan, builder, Loading(0))
    loader = iter(torch.utils.data.DataLoader(rows, batch_size=None, num_workers=workers))
    for _ in range(2 * workers):
        next(loader)
    began = time.perf_counter()
    images = sum(len(row.image_grid_thw) for row in loader)
    return images / (time.perf_counter() - began)


def rates(settings: RunSettings, workers: int, rounds: int) -> dict[str, Any]:
    prepared = prepare(settings, ("train",), Terminal())
    corpus = prepared.corpora["train"]
    plan = make_plan(corpus.lengths, BatchSpec(samples=1), epochs=1, seed=0)
    builder = RowBuilder(corpus, prepared.encoder.template.filler())
    found: dict[str, list[float]] = {"ours": [], "torch": []}
    ahead = []
    ways: dict[str, Callable[[], None]] = {
        "ours": lambda: _keep(found, ahead, *ours(plan, builder, workers)),
        "torch": lambda: found["torch"].append(torchs(plan, builder, workers)),
    }
    for number in range(rounds):
        for way in list(ways)[:: 1 if number % 2 else -1]:
            ways[way]()
    medians = {way: statistics.median(each) for way, each in found.items()}
    ratio = statistics.median(our / their for our, their in zip(found["ours"], found["torch"], strict=True))
    return {"images_per_second": medians, "ratio": ratio, "most_bytes_ahead": max(ahead), "budget": BUDGET}


def _keep(found: dict[str, list[float]], ahead: list[int], rate: float, most: int) -> None:
    found["ours"].append(rate)
    ahead.append(most)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how rows come to training.")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    workers = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TRIPTYCH_CACHE"] = str(folder / "cache")
        trained, taken = folder / "trained", folder / "taken"
        trained.mkdir()
        taken.mkdir()
        rate = rates(settings_of(write_work(taken, options.rows), taken, options.rows), workers, options.rounds)
        waited = waiting(settings_of(write_work(trained, options.steps), trained, options.steps))
    entry = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "workers": workers,
        "data_wait": {"median": statistics.median(waited), "highest": max(waited), "steps": waited},
        **rate,
    }
    print(f"data wait {entry['data_wait']['median']:.2%} of a step, {max(waited):.2%} at most")
    ours_rate, torch_rate = rate["images_per_second"]["ours"], rate["images_per_second"]["torch"]
    print(f"row loader {ours_rate:.1f} images/s, torch's {torch_rate:.1f}, ratio {rate['ratio']:.2f}")
    print(f"at most {rate['most_bytes_ahead'] / 2**20:.0f} MB ahead of {BUDGET / 2**20:.0f}")
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


if __name__ == "__main__":
    main()
