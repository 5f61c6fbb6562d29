"""How much time and memory does a sample take where several ask about the same images, computed alone and shared?

Method: the proportioned model of `feature_cache.py` in float32 on one thread. Sets of 3.5 images of at most 262,144
pixels (three and four by turns), each asked about by 1, 2, 4 or 8 samples of 5 to 25 words of question and 5 to 60 of
answer; a row of eight samples. It is decoded, goes forward and backward, once with its samples computed
alone and once shared, in turn; seconds are CPU seconds, which other work on the machine hardly moves, memory is the
peak above what the process held. Two ways to train:

    tower    everything learns, so the tower runs forward and backward
    cached   LoRA, tower and merger frozen, their features stored and read, as from the second epoch on

CPU MFU is the row's FLOPs (`FlopCounter`) over the time of forward and backward, against a product of two float32
matrices of 2,048 x 2,048 measured beside it.

    python benchmarks/share.py

takes a quarter of an hour of CPU time. Result: benchmarks/results/share.jsonl.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from feature_cache import write_work
from triptych.forward.attention import Attention
from triptych.forward.batch import Batch, build_batch
from triptych.forward.feature_cache import FeatureCache, FeatureWriter
from triptych.forward.flops import FlopCounter
from triptych.forward.isolation import choose_isolation
from triptych.forward.row_forward import RowForward
from triptych.model.loading import PixelNormalizer
from triptych.planning.plan import BatchSpec, make_plan
from triptych.planning.sharing import make_sharing
from triptych.rows.feature_store import FeatureReader
from triptych.rows.sharing import load_or_find
from triptych.run.feature_forecast import feature_shape
from triptych.run.prepare import prepare
from triptych.run.settings import RunSettings
from triptych.terminal import Terminal
from triptych.training.setup import load_for_training
from workload import WORDS, commit, write_pool

RESULTS = Path(__file__).parent / "results" / "share.jsonl"
QUESTIONS = (1, 2, 4, 8)
SAMPLES_PER_ROW, ROWS = 8, 1
MATRIX = 2048
MODES: dict[str, dict[str, Any]] = {
    "tower": {"train": "full"},
    "cached": {"train": "lora", "freeze": ["vision", "merger"], "lora": {"rank": 8}},
}


def write_sets(folder: Path, questions: int, samples: int, names: Sequence[str]) -> Path:
    """``samples`` records of three or four images each, as many of ``questions`` about the same ones."""
    drawn = random.Random(questions)
    records = []
    for number in range(samples // questions):
        shown = [f"images/{names[(4 * number + place) % len(names)]}" for place in range(3 + number % 2)]
        for _ in range(questions):
            asked, answer = (" ".join(drawn.choices(WORDS, k=drawn.randint(5, most))) for most in (25, 60))
            turns = [{"from": "human", "value": "<image>" * len(shown) + asked}, {"from": "gpt", "value": answer}]
            records.append({"conversations": turns, "images": shown})
    path = folder / f"asked-{questions}.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


class Trained:
    """A model that trains in one of the modes, and rows to run through it."""

    def __init__(self, content: dict[str, Any], mode: str, folder: Path) -> None:
        self.content = {**content, "model": {"path": content["model"]["path"], **MODES[mode]}}
        self.content["batch"] = {"samples": SAMPLES_PER_ROW}
        settings = RunSettings.model_validate(self.content)
        self.files = prepare(settings, ("train",), Terminal()).files
        cpu = torch.device("cpu")
        isolation = choose_isolation(self.files.family, cpu)
        self.model, attention = load_for_training(settings.model, self.files.family, torch.float32, cpu, isolation)
        self.model.train()
        self.counter = FlopCounter(self.model, self.files.family, self.model.config)
        normalizer = PixelNormalizer(self.files)
        self.store: FeatureReader | None = None
        features = None
        if mode == "cached":
            base = self.model.get_base_model()
            self.store = FeatureReader(folder / "features", feature_shape(self.files.shapes))
            self.writer = FeatureWriter(folder / "features", 10**10)
            merge = self.files.geometry.merge_size
            features = FeatureCache(base, normalizer, merge, torch.float32, self.store, self.writer)
        self.forward = self._forward(normalizer, isolation, attention, features)

    @staticmethod
    def _forward(normalizer: PixelNormalizer, isolation: Any, attention: Attention, features: Any) -> RowForward:
        return RowForward(normalizer, isolation, attention, features)

    def measure(self, path: Path, questions: int) -> list[dict[str, Any]]:
        """One line with the samples computed alone, and one with what they share computed once."""
        data = {**self.content["data"], "train": [{"path": str(path)}], "workers": 0}
        prepared = prepare(RunSettings.model_validate({**self.content, "data": data}), ("train",), Terminal())
        corpus, filler = prepared.corpora["train"], prepared.encoder.template.filler()
        sharing = make_sharing(load_or_find(corpus), corpus.geometry.merge_size**2, None, images_only=False)
        plan = make_plan(corpus.lengths, BatchSpec(samples=SAMPLES_PER_ROW), epochs=1, seed=0, sharing=sharing)
        rows = [plan.row(number).tolist() for number in range(len(plan))]
        if self.store is not None:  # the first epoch
            for row in rows:
                self.forward.features.complete(build_batch(corpus, row, filler=filler, store=self.store))
            self.writer.close()
            self.store.refresh()
        sums: dict[str, dict[str, Any]] = {share: {} for share in ("nothing", "starts")}
        for row in rows:
            for share, found in sums.items():
                for name, value in self._run(corpus, row, filler, share).items():
                    found[name] = max(value, found.get(name, 0)) if name == "bytes" else found.get(name, 0) + value
        samples = len(plan.samples)
        return [self._line(questions, share, samples, found) for share, found in sums.items()]

    def _run(self, corpus: Any, row: list[int], filler: Any, share: str) -> dict[str, float]:
        self.model.zero_grad()
        ctypes.CDLL(None).malloc_trim(0)
        before = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again (Linux)
        began = time.process_time()
        batch: Batch = build_batch(corpus, row, filler=filler, store=self.store, share=share)
        decoded = time.process_time()
        self.forward.summed_loss(self.model, batch).backward()
        ended = time.process_time()
        return {
            "seconds": ended - began,
            "compute_seconds": ended - decoded,
            "bytes": _memory("VmHWM") - before,
            "tokens": batch.input_ids.shape[1],
            "patches": len(batch.pixels),
            "supervised": len(batch.targets),
            "flops": self.counter.row(batch),
            "matrix_flops": matrix_rate() * (ended - decoded),
        }

    @staticmethod
    def _line(questions: int, share: str, samples: int, found: dict[str, Any]) -> dict[str, Any]:
        return {
            "questions": questions,
            "shared": share != "nothing",
            "samples": samples,
            "seconds_per_sample": found["seconds"] / samples,
            "compute_seconds_per_sample": found["compute_seconds"] / samples,
            "peak_bytes": found["bytes"],
            "tokens": found["tokens"],
            "patches": found["patches"],
            "supervised": found["supervised"],
            "mfu": found["flops"] / found["matrix_flops"],
        }


def matrix_rate() -> float:
    """FLOP/s of a product of two float32 matrices, by CPU time; the best of three."""
    left, right = torch.randn(2, MATRIX, MATRIX)
    rates = []
    for _ in range(3):
        began = time.process_time()
        left @ right
        rates.append(2 * MATRIX**3 / (time.process_time() - began))
    return max(rates)


def _memory(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description="Time samples that share their images, alone and shared.")
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--questions", nargs="+", type=int, default=list(QUESTIONS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TRIPTYCH_CACHE"] = str(folder / "cache")
        content = write_work(folder, 4)
        names = write_pool(folder / "images", 4 * SAMPLES_PER_ROW * ROWS)
        found = []
        for mode in options.modes:
            trained = Trained(content, mode, folder)
            for questions in options.questions:
                path = write_sets(folder, questions, SAMPLES_PER_ROW * ROWS, names)
                for line in trained.measure(path, questions):
                    found.append({"mode": mode, **line})
                    print(json.dumps(found[-1]), flush=True)
    about = {"torch": torch.__version__, "transformers": transformers.__version__, "machine": platform.machine()}
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**about, "commit": commit(), "lines": found}) + "\n")


if __name__ == "__main__":
    main()
