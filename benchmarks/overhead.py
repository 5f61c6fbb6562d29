"""What does the trainer's loop cost beside a bare PyTorch loop over the same prepared rows?

Method: the proportioned model of `feature_cache.py`, in full but for tower and merger, rows of 4 samples of the work
(workload.py) at 50,176 pixels per image, built beforehand and handed over as they are. *Bare* is forward and loss,
backward, clipping, AdamW and the schedule in a plain loop; *trainer* is `RowTrainer` over the same rows with everything
that a run has (callbacks, log lines to the console and the file, throughput). One process, the sides in turns, from the
same weights; the first step of each is not counted. Seconds per step are medians over all steps and rounds, and the
ratio is theirs.

    python benchmarks/overhead.py

Result: benchmarks/results/overhead.jsonl.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import TrainerCallback, get_scheduler

from feature_cache import write_work
from triptych.forward.batch import Batch, build_batch
from triptych.forward.isolation import choose_isolation
from triptych.forward.row_forward import RowForward
from triptych.model.loading import PixelNormalizer
from triptych.model.trainable import parameter_rates
from triptych.recovery.resume import fresh
from triptych.run.prepare import Prepared, plan_training, prepare
from triptych.run.settings import RunSettings
from triptych.terminal import Terminal
from triptych.training.context import make_context
from triptych.training.setup import load_for_training
from triptych.training.trainer import RowTrainer
from triptych.training.watch.progress import ReportCallback
from triptych.training.watch.trackers import RunLogCallback
from workload import commit

RESULTS = Path(__file__).parent / "results" / "overhead.jsonl"
SAMPLES_PER_ROW = 4
MAX_PIXELS = 50_176


class Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


def settings_of(folder: Path, steps: int) -> RunSettings:
    content = write_work(folder, SAMPLES_PER_ROW * steps)
    content["model"] = {"path": content["model"]["path"], "freeze": ["vision", "merger"]}
    content["data"] |= {"max_pixels": MAX_PIXELS, "workers": 0}
    content["batch"] = {"samples": SAMPLES_PER_ROW}
    content["train"] |= {"epochs": 1, "log_every": 10, "feature_cache": "off", "save_every": 10**6}
    return RunSettings.model_validate(content)


def bare(model: nn.Module, forward: RowForward, rows: Sequence[Batch], settings: RunSettings) -> list[float]:
    """Seconds at which each step of a plain loop ended."""
    train = settings.train
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, train.learning_rate, weight_decay=train.weight_decay, fused=True)
    schedule = get_scheduler(train.schedule, optimizer, int(train.warmup * len(rows)), len(rows))
    model.train()
    ends = []
    for row in rows:
        loss = forward.summed_loss(model, row) / max(1, len(row.targets))
        loss.backward()
        nn.utils.clip_grad_norm_(learned, train.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        ends.append(time.perf_counter())
    return ends


def trained(
    model: nn.Module, forward: RowForward, rows: Sequence[Batch], settings: RunSettings, prepared: Prepared
) -> list[float]:
    """The same of the trainer."""
    clock, out = Clock(), Terminal()
    context = make_context(settings, prepared, fresh(settings, prepared))
    trainer = RowTrainer(
        model=model,
        context=context,
        train_dataset=rows,
        forward=forward,
        rates=parameter_rates(model, context.family, settings),
        out=out,
        callbacks=[RunLogCallback(context.output), ReportCallback(out), clock],
    )
    trainer.train()
    return clock.ends


def step_seconds(ends: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(ends)]


def measure(settings: RunSettings, rounds: int) -> dict[str, list[list[float]]]:
    """Seconds of every step but the first, per side and round."""
    prepared = prepare(settings, ("train",), Terminal())
    corpus, filler = prepared.corpora["train"], prepared.encoder.template.filler()
    plan = plan_training(settings, corpus, 1)
    rows = [build_batch(corpus, plan.row(number).tolist(), filler=filler) for number in range(len(plan))]
    isolation = choose_isolation(prepared.files.family, torch.device("cpu"))
    start, attention = load_for_training(
        settings.model, prepared.files.family, torch.float32, torch.device("cpu"), isolation
    )
    forward = RowForward(PixelNormalizer(prepared.files), isolation, attention)
    sides: dict[str, Callable[[nn.Module], list[float]]] = {
        "bare": lambda model: bare(model, forward, rows, settings),
        "trainer": lambda model: trained(model, forward, rows, settings, prepared),
    }
    seconds: dict[str, list[list[float]]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in list(sides)[:: 1 if number % 2 else -1]:
            seconds[side].append(step_seconds(sides[side](copy.deepcopy(start))))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the trainer's loop beside a bare one.")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TRIPTYCH_CACHE"] = str(folder / "cache")
        seconds = measure(settings_of(folder, options.steps), options.rounds)
    medians = {side: statistics.median(step for run in runs for step in run) for side, runs in seconds.items()}
    paired = [
        statistics.median(after / before for before, after in zip(*runs, strict=True))
        for runs in zip(seconds["bare"], seconds["trainer"], strict=True)
    ]
    entry = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": commit(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "steps": options.steps,
        "seconds_per_step": medians,
        "ratio": medians["trainer"] / medians["bare"],
        "ratio_step_by_step": paired,
    }
    for side, median in medians.items():
        print(f"{side:8} {median:7.3f} s per step")
    print(f"ratio    {entry['ratio']:7.3f}   step by step, per round: {' '.join(f'{ratio:.3f}' for ratio in paired)}")
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


if __name__ == "__main__":
    main()
