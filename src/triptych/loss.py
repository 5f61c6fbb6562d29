"""The loss of a row: cross entropy summed over its supervised tokens, through the model's own forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from triptych.data.batch import Batch
from triptych.isolation import PACKED, Isolation
from triptych.model import PixelNormalizer


@dataclass(frozen=True, slots=True)
class RowForward:
    """How the rows of a run go through its model."""

    normalizer: PixelNormalizer
    isolation: Isolation = PACKED

    def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Logits (S, V) at the positions whose next token is a target; no other position reaches the vocabulary."""
        rows = [batch] if self.isolation.packs else batch.alone()
        return torch.cat([model(**self._inputs(row)).logits.flatten(0, -2) for row in rows])

    def summed_loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Cross entropy, summed over the row's S supervised tokens, in float32; 0 for a row without any.

        The caller divides by the supervised tokens of the whole optimizer step, on all ranks: every token then weighs
        the same, however the samples fell into rows.
        """
        return functional.cross_entropy(self.logits(model, batch).float(), batch.targets, reduction="sum")

    def _inputs(self, row: Batch) -> dict[str, Any]:
        inputs = {
            "input_ids": row.input_ids,
            "position_ids": row.position_ids,
            "logits_to_keep": row.keep,
            "use_cache": False,
        }
        if len(row.image_grid_thw):
            inputs |= {"pixel_values": self.normalizer(row.pixels), "image_grid_thw": row.image_grid_thw}
        return inputs | self.isolation.arguments(row)
