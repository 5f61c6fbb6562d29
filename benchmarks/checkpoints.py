"""What do whole checkpoints cost beside plain ones, and how long does it take to verify one?

Method: the proportioned model of `feature_cache.py` after one step of training. *Plain* is transformers' own writing;
*whole* is Triptych's: aside, with checksums, put on the disk (fsync), renamed. Weights alone (`save_pretrained`), and a
whole checkpoint with optimizer, scheduler and random state (Trainer's own, and `RowTrainer`'s). Plain writing leaves
the bytes in the memory of the system; *plain, on the disk* waits for them too. Sides in turns, after a `sync`; medians
over the rounds, ratios of each round. Verifying reads every byte, after the system has forgotten the file
(`posix_fadvise`) and again from its memory.

    python benchmarks/checkpoints.py

Result: benchmarks/results/checkpoints.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from transformers import Trainer

from overhead import settings_of
from triptych.forward.batch import build_batch
from triptych.forward.isolation import choose_isolation
from triptych.forward.row_forward import RowForward
from triptych.model.loading import PixelNormalizer
from triptych.model.trainable import parameter_rates
from triptych.recovery import checkpoints
from triptych.recovery.resume import fresh
from triptych.run.prepare import plan_training, prepare
from triptych.terminal import Terminal
from triptych.training.context import make_context
from triptych.training.setup import load_for_training
from triptych.training.trainer import RowTrainer
from workload import commit

RESULTS = Path(__file__).parent / "results" / "checkpoints.jsonl"


def trained(folder: Path) -> RowTrainer:
    """A trainer after one step."""
    settings, out = settings_of(folder, 1), Terminal()
    settings = settings.model_copy(update={"model": settings.model.model_copy(update={"train": "full", "freeze": []})})
    prepared = prepare(settings, ("train",), out)
    corpus, family = prepared.corpora["train"], prepared.files.family
    plan = plan_training(settings, corpus, 1)
    rows = [build_batch(corpus, plan.row(0).tolist(), filler=prepared.encoder.template.filler())]
    device = torch.device("cpu")
    isolation = choose_isolation(family, device)
    model, attention = load_for_training(settings.model, family, torch.float32, device, isolation)
    trainer = RowTrainer(
        model=model,
        context=make_context(settings, prepared, fresh(settings, prepared)),
        train_dataset=rows,
        forward=RowForward(PixelNormalizer(prepared.files), isolation, attention),
        rates=parameter_rates(model, family, settings),
        out=out,
        callbacks=[],
    )
    trainer.train()
    return trainer


class Sides:
    """Ways to write; each leaves a folder."""

    def __init__(self, trainer: RowTrainer) -> None:
        self._trainer = trainer
        self.checkpoint = trainer.output / f"checkpoint-{trainer.state.global_step}"
        self._weights = trainer.output / "weights"
        self.all: dict[str, tuple[Path, Callable[[], None]]] = {
            "plain weights": (self._weights, self.plain_weights),
            "plain weights, on the disk": (self._weights, lambda: synced(self.plain_weights, self._weights)),
            "whole weights": (self._weights, self.whole_weights),
            "plain checkpoint": (self.checkpoint, self.plain_checkpoint),
            "plain checkpoint, on the disk": (self.checkpoint, lambda: synced(self.plain_checkpoint, self.checkpoint)),
            "whole checkpoint": (self.checkpoint, self.whole_checkpoint),
        }

    def plain_weights(self) -> None:
        self._trainer.model.save_pretrained(self._weights)

    def whole_weights(self) -> None:
        folder = checkpoints.aside(self._trainer.output, self._weights.name)
        self._trainer.model.save_pretrained(folder)
        checkpoints.Seal(folder).close()
        checkpoints.publish(folder, self._weights)

    def plain_checkpoint(self) -> None:
        Trainer._save_checkpoint(self._trainer, self._trainer.model, None)

    def whole_checkpoint(self) -> None:
        self._trainer._save_checkpoint(self._trainer.model, None)


def synced(write: Callable[[], None], folder: Path) -> None:
    write()
    for path in folder.rglob("*"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def write(sides: Sides, rounds: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of each side in each round, and its bytes."""
    seconds: dict[str, list[float]] = {name: [] for name in sides.all}
    sizes = {}
    for number in range(rounds + 1):  # the first one only warms up
        for name in list(sides.all)[:: 1 if number % 2 else -1]:
            folder, work = sides.all[name]
            shutil.rmtree(folder, ignore_errors=True)
            os.sync()
            spent = timed(work)
            if number:
                seconds[name].append(spent)
            sizes[name] = sum(path.stat().st_size for path in folder.rglob("*"))
    return seconds, sizes


def verify(folder: Path, rounds: int) -> dict[str, float]:
    """Seconds to verify a checkpoint, its bytes on the disk or in the memory of the system."""
    os.sync()
    found: dict[str, list[float]] = {"from the disk": [], "from memory": []}
    for _ in range(rounds):
        for path in folder.rglob("*"):
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
        for place in found:
            found[place].append(timed(lambda: checkpoints.fault(folder)))
    assert checkpoints.fault(folder) is None
    return {place: statistics.median(values) for place, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time whole checkpoints beside plain ones.")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        os.environ["TRIPTYCH_CACHE"] = f"{name}/cache"
        sides = Sides(trained(Path(name)))
        seconds, sizes = write(sides, options.rounds)
        sides.whole_checkpoint()
        verified = verify(sides.checkpoint, options.rounds)
    gigabytes = sizes["whole checkpoint"] / 1e9
    ratios = {
        f"{kind}, beside {plain}": statistics.median(
            whole / other for whole, other in zip(seconds[f"whole {kind}"], seconds[plain], strict=True)
        )
        for kind in ("weights", "checkpoint")
        for plain in (f"plain {kind}", f"plain {kind}, on the disk")
    }
    entry = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": commit(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "bytes": sizes,
        "seconds": {side: statistics.median(values) for side, values in seconds.items()},
        "ratios": ratios,
        "seconds_per_gb_verified": {place: spent / gigabytes for place, spent in verified.items()},
    }
    for side, spent in entry["seconds"].items():
        print(f"{side:30} {spent:7.3f} s, {sizes[side] / 1e6:7.1f} MB")
    for what, ratio in ratios.items():
        print(f"{what:60} {ratio:6.2f}")
    for place, spent in entry["seconds_per_gb_verified"].items():
        print(f"verified {place}: {spent:.2f} s per GB")
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


if __name__ == "__main__":
    main()
