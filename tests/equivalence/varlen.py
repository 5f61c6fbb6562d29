"""A varlen kernel in plain torch, which checks what it is handed as strictly as the CUDA kernels do."""

from __future__ import annotations

from itertools import pairwise

import torch
from transformers import AttentionInterface

from triptych.forward.attention import Attention
from triptych.forward.attention_kernels import LanguageVarlen, Sequences, VisionVarlen

TEXT, VISION = "reference_varlen", "reference_flash_varlen"


def kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sequences: Sequences,
    *,
    causal: bool,
    scale: float | None,
) -> torch.Tensor:
    """query (Q, H, D), key and value (T, K, D) -> (Q, H, D): softmax(scale q k^T) v within each sequence."""
    tokens, heads, width = query.shape
    assert key.shape == value.shape == (len(key), key.shape[1], width)
    assert heads % key.shape[1] == 0
    assert query.dtype == key.dtype == value.dtype
    assert all(tensor.stride(-1) == 1 for tensor in (query, key, value))
    bounds = checked(sequences.queries, sequences.longest_queries, tokens)
    key_bounds = checked(sequences.keys, sequences.longest_keys, len(key))
    group = heads // key.shape[1]
    outputs = []
    for (start, end), (first, last) in zip(pairwise(bounds), pairwise(key_bounds), strict=True):
        q = query[start:end].transpose(0, 1)
        k, v = (tensor[first:last].transpose(0, 1).repeat_interleave(group, 0) for tensor in (key, value))
        scores = (q @ k.mT).float() * (width**-0.5 if scale is None else scale)
        if causal:
            hidden = torch.ones(end - start, last - first, dtype=torch.bool).triu(1 + (last - first) - (end - start))
            scores = scores.masked_fill(hidden, float("-inf"))
        outputs.append((scores.softmax(-1).to(v.dtype) @ v).transpose(0, 1))
    return torch.cat(outputs)


def checked(bounds: torch.Tensor, longest: int, tokens: int) -> list[int]:
    """Where sequences start, as the CUDA kernels want it."""
    assert bounds.dtype == torch.int32
    starts = bounds.tolist()
    assert starts[0] == 0
    assert starts[-1] == tokens
    assert isinstance(longest, int), "reading it from the device would wait for the device"
    assert longest == max(end - start for start, end in pairwise(starts))
    return starts


def reference(*, vision: bool = True) -> Attention:
    """Attention that glues this kernel to a model as the varlen setting glues torch's."""
    AttentionInterface.register(TEXT, LanguageVarlen(kernel))
    AttentionInterface.register(VISION, VisionVarlen(kernel))
    return Attention("varlen", TEXT, VISION if vision else "sdpa")
