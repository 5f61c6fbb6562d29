"""What a run reports of itself: when each optimizer step began and ended, and what was in its batches.

Runs in the python of the tool that is measured, and needs nothing but its transformers. All four tools train through
transformers' ``Trainer``; a callback takes the times, and the batches are counted where ``Trainer`` has just fetched
those of a step. That costs some ten microseconds per step. One JSON line per step, on the clock that the parent reads
too (``time.monotonic``: one per machine on Linux).
"""

from __future__ import annotations

import functools
import json
import os
import time
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback


class Meter(TrainerCallback):
    """Writes a line per optimizer step, and ends the process where nothing more is to be measured."""

    def __init__(self, path: Path, *, start_only: bool) -> None:
        self.path = path
        self.start_only = start_only
        self.began = 0.0
        self.cpu = 0.0
        self.counts: dict[str, int] = {}

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began, self.cpu = time.monotonic(), time.process_time()
        if self.start_only:
            self._write({"began": self.began, **self.counts})
            os._exit(0)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._write(
            {"began": self.began, "ended": time.monotonic(), "cpu": time.process_time() - self.cpu, **self.counts}
        )

    def on_train_end(self, *_: Any, **__: Any) -> None:
        os._exit(0)  # the model that some tools save now is not part of the comparison

    def _write(self, step: dict[str, float]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(step) + "\n")


def install(path: str, *, start_only: bool) -> None:
    """Give every ``Trainer`` of this process a meter that writes to ``path``."""
    meter = Meter(Path(path), start_only=start_only)
    make, fetch = Trainer.__init__, Trainer.get_batch_samples

    @functools.wraps(make)  # ms-swift looks at the signature
    def make_with_meter(self: Trainer, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        self.add_callback(meter)

    @functools.wraps(fetch)
    def fetch_and_count(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        batches, items = fetch(self, *args, **kwargs)
        found = [_count(batch, self) for batch in batches]
        meter.counts = {key: sum(each[key] for each in found) for key in (found[0] if found else ())}
        return batches, items

    Trainer.__init__, Trainer.get_batch_samples = make_with_meter, fetch_and_count  # type: ignore[method-assign]


def _count(batch: Any, trainer: Trainer) -> dict[str, int]:
    """Positions that are computed, those of them that hold a token, targets and images of one batch."""
    if "batch" in batch:  # Triptych's row: it holds nothing but tokens
        row = batch["batch"]
        slots = real = row.input_ids.numel()
        supervised, images = len(row.targets), len(row.image_grid_thw)
    else:
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        slots = ids.numel()
        if mask is None or mask.dim() != 2:  # LLaMA-Factory's packed rows: four dimensions
            mask = ids != _pad_token(trainer)
        real = int((mask != 0).sum())
        supervised = int((batch["labels"][:, 1:] != -100).sum())
        images = len(batch["image_grid_thw"]) if "image_grid_thw" in batch else 0
    return {"slots": slots, "tokens": real, "supervised": supervised, "images": images}


def _pad_token(trainer: Trainer) -> int:
    processing: Any = trainer.processing_class
    return int(getattr(processing, "tokenizer", processing).pad_token_id)
