"""Device memory of a training step, estimated from the model's shapes and the exact size of a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from triptych.family import Family
from triptych.model import part_of

FLOAT32 = 4
ADAMW_STATES = 2


@dataclass(frozen=True, slots=True)
class RowSize:
    """What the memory of a row depends on."""

    tokens: int
    patches: int
    supervised: int


@dataclass(frozen=True, slots=True)
class StepMemory:
    """Bytes on one device that shares nothing with others."""

    weights: int
    gradients: int
    optimizer: int
    """AdamW's two moments, float32"""
    activations: int
    """What the forward pass keeps for the backward pass"""
    logits: int
    """Of the supervised tokens, with their log-probabilities and gradients"""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


class MemoryModel:
    """Counts the tensors that a step keeps, per token and patch, as Korthikanti et al. 2022 (section 4.1) do for GPT.

    A language layer keeps, of each token: both norms' inputs and normalised inputs (4 h, float32), the norms' outputs
    and the attention's query, key, value, output and its transposed copy (7 h), and gate, its activation, up and their
    product (4 i). A vision block keeps 12 h + 3 i of each patch, the merger 3 h, the patch embedding its input. h is
    the width, i that of the MLP. Under SDPA each language layer also keeps the mask that isolates the samples, T^2
    values; flash attention needs none. A part with nothing to learn in it or below it keeps nothing.
    """

    def __init__(
        self, model: nn.Module, family: Family, config: Any, precision: torch.dtype, *, checkpointing: bool
    ) -> None:
        """
        Args:
            model: set up for training; its parameters may be on the ``meta`` device.
            family: names its parts.
            config: of the model.
            precision: of the arithmetic.
            checkpointing: whether activations are computed again in the backward pass.
        """
        self._bytes = precision.itemsize
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._trained = sum(parameter.numel() for _, parameter in trained)
        self._weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        parts = {part_of(name, family) for name, _ in trained}
        text, vision = config.text_config, config.vision_config
        self._vocabulary: int = text.vocab_size
        layer = 4 * text.hidden_size * FLOAT32 + (7 * text.hidden_size + 4 * text.intermediate_size) * self._bytes
        layers = text.num_hidden_layers
        self._per_token = layers * text.hidden_size * FLOAT32 + layer if checkpointing else layers * layer
        masked = getattr(config, "_attn_implementation", None) in (None, "sdpa", "eager")
        self._per_pair = self._bytes * (1 if checkpointing else layers) if masked else 0
        width = getattr(vision, "embed_dim", None) or vision.hidden_size
        inner = getattr(vision, "intermediate_size", None) or int(width * vision.mlp_ratio)
        block = (12 * width + 3 * inner) * self._bytes
        blocks = vision.depth * width * self._bytes + block if checkpointing else vision.depth * block
        values = 3 * vision.temporal_patch_size * vision.patch_size**2
        self._per_patch = 3 * width * self._bytes if parts & {"vision", "merger"} else 0
        if "vision" in parts:
            self._per_patch += blocks + values * FLOAT32

    def step(self, row: RowSize) -> StepMemory:
        """Bytes of one forward and backward pass over ``row`` and the optimizer's step."""
        return StepMemory(
            weights=self._weights,
            gradients=self._trained * FLOAT32,
            optimizer=self._trained * FLOAT32 * ADAMW_STATES,
            activations=row.tokens * (self._per_token + row.tokens * self._per_pair) + row.patches * self._per_patch,
            logits=row.supervised * self._vocabulary * self._logit_bytes,
        )

    def largest(self, tokens: NDArray[np.int64], patches: NDArray[np.int64], supervised: NDArray[np.int64]) -> int:
        """Number of the row that takes the most memory, of (R,) tokens, patches and supervised tokens."""
        activations = tokens * (self._per_token + tokens * self._per_pair) + patches * self._per_patch
        return int(np.argmax(activations + supervised * self._vocabulary * self._logit_bytes))

    @property
    def _logit_bytes(self) -> int:
        """Of one logit: itself in float32, its log-probability and gradient, and where the arithmetic is narrower also
        what the head gave and takes back."""
        return 3 * FLOAT32 + (2 * self._bytes if self._bytes < FLOAT32 else 0)
