"""Attention of packed rows as functions that transformers calls: each sample by itself, no mask of row x row.

A language layer hands over query (1, H, T, D), key and value (1, K, T, D); what comes back is (1, T, H, D). Where the
samples start comes along as ``sample_bounds``, a keyword of our own: the model hands its keywords to the vision tower
too, whose attention takes the bounds of the images under transformers' own names.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface

from triptych.errors import ModelError

SAMPLE_SDPA = "triptych_sample_sdpa"
VARLEN = "triptych_varlen"
# transformers' vision attention takes all images in one call where the name of its implementation holds "flash", and
# loops over them otherwise.
VISION_VARLEN = "triptych_flash_varlen"
# The language layers of samples that share their start: transformers' own glue lets a token see what is beside it only.
SHARED_FLASH = {"flash_attention_2": "triptych_shared_2", "flash_attention_3": "triptych_shared_3"}

# What changes the result of a layer that asks for it.
IGNORED_AT_A_COST = ("attention_mask", "dropout", "sliding_window", "softcap", "s_aux", "position_bias")


@dataclass(frozen=True, slots=True)
class SampleBounds:
    """Where the B samples of a row of T tokens start, on the device and for Python."""

    cu_seqlens: torch.Tensor
    """(B + 1,) int32, the last one is T"""
    max_seqlen: int
    """Tokens of the longest sample"""
    lengths: tuple[int, ...]
    """(B,) tokens; empty where only the device needs to know, since reading it there would wait for the device"""
    keys: PathBounds | None = None
    """What the tokens of each sample see, where samples share their start; then the bounds above are those of the
    tokens that no sample before holds, of which there may be none"""


@dataclass(frozen=True, slots=True)
class PathBounds:
    """The B samples of a row that holds what they share once, as paths through it: all that their own tokens see."""

    tokens: torch.Tensor
    """int64 places in the row of the tokens of each sample, one sample after the other"""
    cu_seqlens: torch.Tensor
    """(B + 1,) int32 where each sample starts among them"""
    max_seqlen: int
    """Tokens of the longest sample"""
    lengths: tuple[int, ...]
    """(B,) tokens of each sample"""
    masks: tuple[torch.Tensor | None, ...] = ()
    """(B,) bool (own tokens, tokens): what the tokens that a sample shares with none before see of it; None where that
    is all of the sample. Empty where a kernel needs none"""


@dataclass(frozen=True, slots=True)
class Sequences:
    """Where sequences start among queries and among keys; the last query of each sees all of its keys."""

    queries: torch.Tensor
    """(B + 1,) int32"""
    longest_queries: int
    keys: torch.Tensor
    """(B + 1,) int32"""
    longest_keys: int


class VarlenKernel(Protocol):
    """Attention over sequences that lie end to end."""

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sequences: Sequences,
        *,
        causal: bool,
        scale: float | None,
    ) -> torch.Tensor:
        """query (Q, H, D), key and value (T, K, D) with H a multiple of K -> (Q, H, D)"""
        ...


def register() -> None:
    """Make our implementations known to transformers by their names; doing it again changes nothing.

    No mask function goes with them: transformers builds no mask for an implementation that has none.
    """
    AttentionInterface.register(SAMPLE_SDPA, attend_per_sample)
    AttentionInterface.register(VARLEN, LanguageVarlen(torch_varlen))
    AttentionInterface.register(VISION_VARLEN, VisionVarlen(torch_varlen))
    AttentionInterface.register(SHARED_FLASH["flash_attention_2"], LanguageVarlen(flash_2))
    AttentionInterface.register(SHARED_FLASH["flash_attention_3"], LanguageVarlen(flash_3))


# Samples differ in number and length from row to row: compiled, every row would be compiled again.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def attend_per_sample(
    _layer: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sample_bounds: SampleBounds | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Causal SDPA of each sample, one after the other: on every device, in every precision.

    Raises:
        ModelError: if the layer asks for what this does not do.
    """
    bounds = _known(SAMPLE_SDPA, sample_bounds)
    _refuse_more(SAMPLE_SDPA, attention_mask, others)
    shared_heads = key.shape[1] != query.shape[1]
    if shared_heads and not _shares_heads(query):
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        shared_heads = False
    outputs = [
        functional.scaled_dot_product_attention(
            q, k, v, mask, dropout_p=dropout, is_causal=mask is None, scale=scaling, enable_gqa=shared_heads
        ).transpose(1, 2)
        for q, k, v, mask in _samples(query, key, value, bounds)
    ]
    return torch.cat(outputs, 1), None


def _samples(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: SampleBounds
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """Queries, keys and values of each sample, and what its queries see; None for a sample that is seen causally."""
    parts = zip(*(torch.split(tensor, list(bounds.lengths), 2) for tensor in (query, key, value)), strict=True)
    if bounds.keys is None:
        yield from ((q, k, v, None) for q, k, v in parts)
        return
    paths = torch.split(bounds.keys.tokens, list(bounds.keys.lengths))
    for (q, k, v), places, mask in zip(parts, paths, bounds.keys.masks, strict=True):
        if mask is not None and q.shape[2]:
            k, v = key.index_select(2, places), value.index_select(2, places)
        if q.shape[2]:
            yield q, k, v, mask


@dataclass(frozen=True, slots=True)
class LanguageVarlen:
    """Causal attention of all samples of a row in one call of ``kernel``."""

    kernel: VarlenKernel

    def __call__(
        self,
        _layer: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        dropout: float = 0.0,
        scaling: float | None = None,
        sample_bounds: SampleBounds | None = None,
        **others: Any,
    ) -> tuple[torch.Tensor, None]:
        """
        Raises:
            ModelError: if the layer asks for what the kernel does not do.
        """
        bounds = _known(VARLEN, sample_bounds)
        _refuse_more(VARLEN, attention_mask, others, dropout)
        query, key, value = _flat(query, key, value)
        paths = bounds.keys
        if paths is not None:
            key, value = key.index_select(0, paths.tokens), value.index_select(0, paths.tokens)
        seen = (bounds.cu_seqlens, bounds.max_seqlen) if paths is None else (paths.cu_seqlens, paths.max_seqlen)
        sequences = Sequences(bounds.cu_seqlens, bounds.max_seqlen, *seen)
        return self.kernel(query, key, value, sequences, causal=True, scale=scaling)[None], None


@dataclass(frozen=True, slots=True)
class VisionVarlen:
    """Full attention of all images, or windows of them, in one call of ``kernel``."""

    kernel: VarlenKernel

    def __call__(
        self,
        _layer: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        cu_seq_lens_q: torch.Tensor,
        max_length_q: int,
        dropout: float = 0.0,
        scaling: float | None = None,
        **others: Any,
    ) -> tuple[torch.Tensor, None]:
        """
        Raises:
            ModelError: if the layer asks for what the kernel does not do.
        """
        _refuse_more(VISION_VARLEN, attention_mask, others, dropout)
        query, key, value = _flat(query, key, value)
        images = Sequences(cu_seq_lens_q, max_length_q, cu_seq_lens_q, max_length_q)
        return self.kernel(query, key, value, images, causal=False, scale=scaling)[None], None


def torch_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sequences: Sequences,
    *,
    causal: bool,
    scale: float | None,
) -> torch.Tensor:
    """torch's own flash attention over sequences end to end: CUDA, bfloat16 or float16."""
    from torch.nn.attention.varlen import varlen_attn

    output = varlen_attn(
        query,
        key,
        value,
        sequences.queries,
        sequences.keys,
        sequences.longest_queries,
        sequences.longest_keys,
        scale=scale,
        window_size=(-1, 0) if causal else (-1, -1),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, torch.Tensor)  # a pair where auxiliary outputs are asked for
    return output


def flash_2(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sequences: Sequences,
    *,
    causal: bool,
    scale: float | None,
) -> torch.Tensor:
    """The package flash-attn 2: CUDA, bfloat16 or float16."""
    return _packaged("flash_attn", query, key, value, sequences=sequences, causal=causal, scale=scale)


def flash_3(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sequences: Sequences,
    *,
    causal: bool,
    scale: float | None,
) -> torch.Tensor:
    """The package flash-attn 3: CUDA of compute capability 9, bfloat16 or float16."""
    return _packaged("flash_attn_interface", query, key, value, sequences=sequences, causal=causal, scale=scale)


def _packaged(
    package: str, *tensors: torch.Tensor, sequences: Sequences, causal: bool, scale: float | None
) -> torch.Tensor:
    found = importlib.import_module(package).flash_attn_varlen_func(
        *tensors,
        sequences.queries,
        sequences.keys,
        sequences.longest_queries,
        sequences.longest_keys,
        softmax_scale=scale,
        causal=causal,
    )
    output: torch.Tensor = found[0] if isinstance(found, tuple) else found
    return output


def _flat(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """(1, H, T, D) -> (T, H, D), in the precision of the arithmetic.

    Rotary embeddings leave query and key in float32 under autocast, which knows nothing of a custom kernel.
    """
    value = tensors[-1]
    device = value.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    return [tensor.transpose(1, 2).squeeze(0).to(dtype) for tensor in tensors]


def _shares_heads(query: torch.Tensor) -> bool:
    """Whether SDPA is quick with fewer heads of keys than of queries: flash kernels are, on CUDA in half precision."""
    device = query.device.type
    if device != "cuda":
        return device == "cpu"
    return torch.is_autocast_enabled(device) or query.dtype in (torch.bfloat16, torch.float16)


def _known(name: str, bounds: SampleBounds | None) -> SampleBounds:
    if bounds is None:
        raise ModelError(f"{name} must be told where samples start (`sample_bounds`), or they would see each other")
    return bounds


def _refuse_more(name: str, attention_mask: torch.Tensor | None, asked: dict[str, Any], dropout: float = 0.0) -> None:
    """Refuse what would be ignored otherwise."""
    given = {"attention_mask": attention_mask, "dropout": dropout or None, **asked}
    found = [key for key in IGNORED_AT_A_COST if given.get(key) is not None]
    if found:
        raise ModelError(f"{name} does not do {', '.join(found)}, which the model asks for; set model.attention: sdpa")
