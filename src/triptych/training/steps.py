"""The rows of an optimizer step: losses are looked at before a weight changes, a row that is too large is split.

A row that runs out of memory is computed sample by sample: the sum of its samples' losses is its loss. What the step
had accumulated may be half written then, so the rows before it are computed again, too.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from triptych.forward.batch import Batch, RowDataset
from triptych.forward.feature_cache import FeatureCache
from triptych.recovery import checkpoints, health, resources
from triptych.run.reporter import Reporter

Train = Callable[[Batch], torch.Tensor]
"""Forward and backward of a row; its loss."""


class StepRows:
    """What a rank computed of the step that is going on."""

    def __init__(self, output: Path, out: Reporter, rows: Any, features: FeatureCache | None, *, alone: bool) -> None:
        """
        Args:
            output: of the run.
            out: told of splits and jumps.
            rows: the data set, for the names of samples.
            features: of a run that keeps them.
            alone: whether no other rank waits for this one, so that rows may be split.
        """
        self._output = output
        self._out = out
        self._rows = rows if isinstance(rows, RowDataset) else None
        self._features = features
        self._alone = alone
        self._done: list[tuple[Batch, torch.Tensor]] = []
        self._spikes = health.SpikeWatch()
        self._too_large: tuple[int, int] | None = None
        """Tokens and patches of the smallest row that did not fit."""

    def train(self, batch: Batch, train: Train, forget: Callable[[], None], step: int) -> torch.Tensor:
        """Compute a row, and split it if it does not fit.

        Args:
            batch: the row.
            train: computes it.
            forget: drops the gradients of the step.
            step: number of the step, from 1.

        Raises:
            ResourceError: if a sample alone does not fit, or rows cannot be split here.
        """
        if not self._is_too_large(batch):
            loss = self._try(batch, train)
            if loss is not None:
                return loss
            self._report(batch, step)
            forget()
            earlier, self._done = self._done, []
            for row, _ in earlier:  # by samples as well: a failure among them would spoil the gradients again
                for part in self._parts(row):
                    self._one(part, train)
        return torch.stack([self._one(part, train) for part in self._parts(batch)]).sum()

    def evaluate(self, batch: Batch, loss_of: Train) -> torch.Tensor:
        """The loss of a row that nothing is learned from, split if it does not fit.

        Raises:
            ResourceError: if a sample alone does not fit.
        """
        loss = self._try(batch, loss_of)
        if loss is None:
            parts = self._parts(batch) if len(batch.cu_seqlens) > 2 else [batch]
            loss = torch.stack([self._one(part, loss_of) for part in parts]).sum()
        self._done.clear()
        return loss

    def check(self, norm: torch.Tensor | float, rate: float, step: int) -> None:
        """Look at the step's losses and gradient norm, before they change a weight; waits for the device once.

        Raises:
            DivergedError: if one of them is not finite.
        """
        rows, self._done = self._done, []
        if not rows:
            return
        last = torch.as_tensor(norm, device=rows[0][1].device)
        *losses, found = torch.stack([*(loss for _, loss in rows), last]).tolist()
        samples = [self.origins(row) for row, _ in rows] if self._rows is not None else [[] for _ in rows]
        health.check_finite(self._output, step, losses, found, rate, samples)
        middle = self._spikes.look(sum(losses))
        if middle is not None:
            origins = health.named([origin for row in samples for origin in row], most=3)
            self._out.line(f"step {step}: the loss jumped to {sum(losses):.4g}, from about {middle:.4g}")
            self._out.line(f"  its samples: {origins}")

    def origins(self, row: Batch) -> list[str]:
        """Where a row's samples come from."""
        return [] if self._rows is None else [str(self._rows.origin(sample)) for sample in row.samples]

    def _try(self, batch: Batch, train: Train) -> torch.Tensor | None:
        """The row's loss; None if it does not fit."""
        try:
            loss = train(batch)
        except Exception as error:
            if not resources.out_of_memory(error):
                raise
        else:
            self._done.append((batch, loss))
            return loss
        # Only now that nothing holds what the failed row had computed.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    def _one(self, batch: Batch, train: Train) -> torch.Tensor:
        loss = self._try(batch, train)
        if loss is None:
            raise resources.ResourceError(self._describe(batch))
        return loss

    def _parts(self, batch: Batch) -> Sequence[Batch]:
        complete = batch if self._features is None else self._features.complete(batch)
        return [replace(part, problems=()) for part in complete.unpack()]

    def _is_too_large(self, batch: Batch) -> bool:
        if self._too_large is None or len(batch.cu_seqlens) <= 2:
            return False
        tokens, patches = self._too_large
        return batch.input_ids.shape[1] >= tokens and len(batch.pixels) >= patches

    def _report(self, batch: Batch, step: int) -> None:
        """Say once that rows are split.

        Raises:
            ResourceError: if this one cannot be.
        """
        if len(batch.cu_seqlens) <= 2 or not self._alone:
            raise resources.ResourceError(self._describe(batch))
        if self._too_large is None:
            self._out.line(
                f"step {step}: out of memory with a row of {_size(batch)}; rows that do not fit are computed "
                "sample by sample, with the same loss; a lower batch.tokens or batch.samples would be faster"
            )
        self._too_large = batch.input_ids.shape[1], len(batch.pixels)

    def _describe(self, batch: Batch) -> str:
        return (
            f"out of memory with a row of {_size(batch)}: {health.named(self.origins(batch))}; set "
            f"train.gradient_checkpointing: true, {checkpoints.how_to_go_on(self._output)}; or start again with lower "
            "data.max_pixels, data.max_tokens or batch.tokens"
        )


def _size(batch: Batch) -> str:
    return (
        f"{len(batch.samples):,} samples, {batch.input_ids.shape[1]:,} tokens, {len(batch.image_grid_thw):,} images "
        f"of {int(batch.image_grid_thw.prod(-1).sum()):,} patches"
    )
