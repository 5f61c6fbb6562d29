"""The loss of a row: cross entropy summed over its supervised tokens, through the model's own forward."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from triptych.data.batch import Batch
from triptych.model import PixelNormalizer


def supervised_logits(model: nn.Module, batch: Batch, normalizer: PixelNormalizer) -> torch.Tensor:
    """Logits (S, V) at the positions whose next token is a target; no other position reaches the vocabulary.

    Row 0 of the position ids keeps the samples apart: with four rows and no attention mask, transformers starts a new
    sequence wherever it falls back to 0.
    """
    inputs = {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "logits_to_keep": batch.keep,
        "use_cache": False,
    }
    if len(batch.image_grid_thw):
        inputs |= {"pixel_values": normalizer(batch.pixels), "image_grid_thw": batch.image_grid_thw}
    logits: torch.Tensor = model(**inputs).logits
    return logits.flatten(0, -2)


def summed_loss(model: nn.Module, batch: Batch, normalizer: PixelNormalizer) -> torch.Tensor:
    """Cross entropy, summed over the row's S supervised tokens, in float32; 0 for a row without any.

    The caller divides by the supervised tokens of the whole optimizer step, on all ranks: every token then weighs the
    same, however the samples fell into rows.
    """
    logits = supervised_logits(model, batch, normalizer).float()
    return functional.cross_entropy(logits, batch.targets, reduction="sum")
