"""Attention of packed rows as functions that transformers calls: each sample by itself, no mask of row x row.

A language layer hands over query (1, H, T, D), key and value (1, K, T, D); what comes back is (1, T, H, D). Where the
samples start comes along as ``sample_bounds``, a keyword of our own: the model hands its keywords to the vision tower
too, whose attention takes the bounds of the images under transformers' own names.
"""

from __future__ import annotations

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


class VarlenKernel(Protocol):
    """Attention over sequences that lie end to end."""

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
        *,
        causal: bool,
        scale: float | None,
    ) -> torch.Tensor:
        """query (T, H, D), key and value (T, K, D) with H a multiple of K, cu_seqlens (B + 1,) int32 -> (T, H, D)"""
        ...


def register() -> None:
    """Make our implementations known to transformers by their names; doing it again changes nothing.

    No mask function goes with them: transformers builds no mask for an implementation that has none.
    """
    AttentionInterface.register(SAMPLE_SDPA, attend_per_sample)
    AttentionInterface.register(VARLEN, LanguageVarlen(torch_varlen))
    AttentionInterface.register(VISION_VARLEN, VisionVarlen(torch_varlen))


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
    lengths = list(bounds.lengths)
    samples = zip(*(torch.split(tensor, lengths, 2) for tensor in (query, key, value)), strict=True)
    outputs = [
        functional.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=shared_heads
        ).transpose(1, 2)
        for q, k, v in samples
    ]
    return torch.cat(outputs, 1), None


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
        output = self.kernel(query, key, value, bounds.cu_seqlens, bounds.max_seqlen, causal=True, scale=scaling)
        return output[None], None


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
        output = self.kernel(query, key, value, cu_seq_lens_q, max_length_q, causal=False, scale=scaling)
        return output[None], None


def torch_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
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
        cu_seqlens,
        cu_seqlens,
        max_seqlen,
        max_seqlen,
        scale=scale,
        window_size=(-1, 0) if causal else (-1, -1),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, torch.Tensor)  # a pair where auxiliary outputs are asked for
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
