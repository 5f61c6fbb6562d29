"""Device memory of a training step, estimated from the model's shapes and the exact size of a row."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from triptych.family.family import Family
from triptych.family.selectors import PARTS, Part, Place
from triptych.family.shapes import LINEAR, LanguageShape, VisionShape, read_shapes
from triptych.forward.attention import keeps_mask
from triptych.forward.head_loss import default_limit, tokens_at_once
from triptych.model.parts import HEAD, PartMap
from triptych.model.qlora import BYTES_PER_WEIGHT
from triptych.run.settings import AttentionName

FLOAT32 = 4
ADAMW_STATES = 2
LINEAR_CHUNK = 64
"""Tokens that transformers' reference path of linear attention computes together."""


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
    """Of the supervised tokens that reach the vocabulary together, with their log-probabilities; and the gradients that
    are made beside the loss"""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


@dataclass(frozen=True, slots=True)
class StepOptions:
    """How a step is computed, where it decides what is kept."""

    checkpointing: bool = False
    """Whether activations are computed again in the backward pass"""
    packed: Collection[str] = ()
    """Names of the weights that will be in 4 bits, where the model was made without that"""
    attention: AttentionName = "sdpa"
    """What computes attention, as chosen; not ``auto``"""
    logits_limit: int | None = None
    """Bytes of the largest logits tensor; None for the default on a GPU"""


class MemoryModel:
    """Counts the tensors that a step keeps, per token and patch, as Korthikanti et al. 2022 (section 4.1) do for GPT.

    A language layer keeps, of each token: both norms' inputs and normalised inputs (4 h, float32), the norms' outputs
    and the attention's query, key, value, output and its transposed copy (7 h), and gate, its activation, up and their
    product (4 i). A vision block keeps 12 h + 3 i of each patch, the merger 3 h, the patch embedding its input. h is
    the width, i that of the MLP. Under masked SDPA each language layer also keeps the mask that isolates the samples,
    T^2 values, and repeats keys and values that heads share; other attention does neither. Norms of query and key keep
    both in float32, twice. A mixture's token goes through some experts, as an MLP of their width together. A linear
    attention layer also keeps the states of ``_linear_states``. Layers below the first that learns keep nothing. An
    adapter keeps r of each token, r its rank, with dropout also its input and what was dropped of it, with DoRA twice
    its output.
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        config: Any,
        precision: torch.dtype,
        options: StepOptions = StepOptions(),
    ) -> None:
        """
        Args:
            model: set up for training; its parameters may be on the ``meta`` device.
            family: names its parts.
            config: of the model.
            precision: of the arithmetic.
            options: how a step is computed.
        """
        checkpointing, attention = options.checkpointing, options.attention
        self._bytes = precision.itemsize
        self._trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        # Autocast keeps what it made of the float32 weights for the backward pass.
        self._casts = self._trained * self._bytes if self._bytes < FLOAT32 else 0
        self._weights = sum(
            round(p.numel() * (BYTES_PER_WEIGHT if name in options.packed else p.element_size()))
            for name, p in model.named_parameters()
        )
        parts = PartMap(model, family)
        learning = [parts.place(name) for name, parameter in model.named_parameters() if parameter.requires_grad]
        shapes = read_shapes(config.to_dict())
        self._vocabulary, self._width = shapes.language.vocabulary, shapes.language.width
        limit = default_limit(torch.device("cuda")) if options.logits_limit is None else options.logits_limit
        self._logits_at_once = tokens_at_once(limit, self._vocabulary)
        self._head_learns = any(
            parameter.requires_grad and (HEAD in name or "embed_tokens" in name)
            for name, parameter in model.named_parameters()
        )
        masked = keeps_mask(attention)
        normed = any(".q_norm." in name for name, _ in model.named_parameters())
        self._count_language(shapes.language, learning, normed=normed, masked=masked, checkpointing=checkpointing)
        self._count_vision(shapes.vision, learning, checkpointing=checkpointing)
        adapters = _adapter_values(model, parts, self._bytes)
        self._per_token += _at_once(adapters["language"], checkpointing=checkpointing)
        self._per_patch += _at_once(adapters["vision"], checkpointing=checkpointing)
        self._per_patch += sum(adapters["merger"].values()) // shapes.vision.merge_size**2

    def _count_language(
        self, text: LanguageShape, learning: list[Place], *, normed: bool, masked: bool, checkpointing: bool
    ) -> None:
        each = [self._layer(text, kind, normed=normed, repeats=masked) for kind in text.kinds]
        # Where the images' side learns, gradients go through all layers on their way to it.
        alone = all(place.part == "language" for place in learning)
        first = max(0, min(place.layer for place in learning)) if alone else 0
        inputs = text.layers * text.width * FLOAT32
        self._per_token = inputs + max(each) if checkpointing else sum(each[first:])
        attending = sum(layer >= first for layer in text.attending)
        self._per_pair = self._bytes * (1 if checkpointing else attending) if masked else 0

    def _layer(self, text: LanguageShape, kind: str, *, normed: bool, repeats: bool) -> int:
        """Bytes that a language layer keeps of a token, masks aside."""
        shared = 4 * text.width * FLOAT32 + 4 * text.mlp_width * self._bytes
        # What is sent to the experts and what comes back.
        shared += 2 * text.experts_per_token * text.width * self._bytes
        if kind == LINEAR:
            return shared + _linear_states(text) + 16 * text.linear_value_width * self._bytes
        norms = 2 * FLOAT32 * text.head_width * (text.heads + text.key_heads) if normed else 0
        states = 5.0 if repeats else 3 + 2 * text.key_heads / text.heads
        return int(shared + (2 + states) * text.width * self._bytes + norms)

    def _count_vision(self, vision: VisionShape, learning: list[Place], *, checkpointing: bool) -> None:
        width = vision.width
        block = (12 * width + 3 * vision.mlp_width) * self._bytes
        first = min((place.layer for place in learning if place.part == "vision"), default=vision.depth)
        kept = vision.depth - max(0, first)
        self._per_patch = 3 * width * self._bytes if any(place.part != "language" for place in learning) else 0
        if kept and checkpointing:
            self._per_patch += vision.depth * width * self._bytes + block
        else:
            self._per_patch += kept * block
        if first < 0:
            self._per_patch += 3 * vision.patch_size**2 * FLOAT32  # one frame

    def step(self, row: RowSize) -> StepMemory:
        """Bytes of one forward and backward pass over ``row`` and the optimizer's step."""
        return StepMemory(
            weights=self._weights,
            gradients=self._trained * FLOAT32,
            optimizer=self._trained * FLOAT32 * ADAMW_STATES,
            activations=self._casts
            + row.tokens * (self._per_token + row.tokens * self._per_pair)
            + row.patches * self._per_patch,
            logits=int(self._logits(np.int64(row.supervised))),
        )

    def largest(self, tokens: NDArray[np.int64], patches: NDArray[np.int64], supervised: NDArray[np.int64]) -> int:
        """Number of the row that takes the most memory, of (R,) tokens, patches and supervised tokens."""
        activations = tokens * (self._per_token + tokens * self._per_pair) + patches * self._per_patch
        return int(np.argmax(activations + self._logits(supervised)))

    def _logits(self, supervised: NDArray[np.int64] | np.int64) -> NDArray[np.int64]:
        """Bytes at the head, of (R,) supervised tokens."""
        at_once = np.minimum(supervised, self._logits_at_once) * self._vocabulary * 2 * FLOAT32
        gradients = supervised * self._width * FLOAT32 + self._head_learns * self._vocabulary * self._width * FLOAT32
        return np.asarray(at_once + gradients)


def _linear_states(text: LanguageShape) -> int:
    """Bytes that ``torch_chunk_gated_delta_rule`` of transformers 5.24 keeps of a token, in float32 in any precision.

    Of each value head, with keys of k, values of v and chunks of C tokens: five C x C matrices per chunk (two products,
    the decays, the system that is solved, the scores), queries and keys in eight forms, values in three, and the
    recurrent state of each chunk.
    """
    keys, values = text.linear_key_width // text.linear_key_heads, text.linear_value_width // text.linear_value_heads
    each = 5 * LINEAR_CHUNK + 8 * keys + 3 * values + keys * values // LINEAR_CHUNK
    return each * text.linear_value_heads * FLOAT32


def _adapter_values(model: nn.Module, parts: PartMap, size: int) -> dict[Part, dict[int, int]]:
    """Bytes that the adapters of every layer keep of one token or patch, at ``size`` bytes per value."""
    kept: dict[Part, dict[int, int]] = {part: {} for part in PARTS}
    for name, module in model.named_modules():
        ranks = getattr(module, "r", None)
        if not isinstance(ranks, dict) or not hasattr(module, "lora_A") or not isinstance(module.base_layer, nn.Linear):
            continue
        place = parts.place(name)
        for adapter, rank in ranks.items():
            values = rank * size
            if isinstance(module.lora_dropout[adapter], nn.Dropout):
                values += module.in_features * (size + 1)
            if module.use_dora[adapter]:
                values += 2 * module.out_features * size
            kept[place.part][place.layer] = kept[place.part].get(place.layer, 0) + values
    return kept


def _at_once(layers: dict[int, int], *, checkpointing: bool) -> int:
    """Of what every layer would keep, what is there at one time."""
    return max(layers.values(), default=0) if checkpointing else sum(layers.values())
