"""A varlen kernel in plain torch, which checks what it is handed as strictly as the CUDA kernels do."""

from __future__ import annotations

from itertools import pairwise

import torch
from transformers import AttentionInterface

from triptych.forward.attention import Attention
from triptych.forward.attention_kernels import LanguageVarlen, VisionVarlen

TEXT, VISION = "reference_varlen", "reference_flash_varlen"


def kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    *,
    causal: bool,
    scale: float | None,
) -> torch.Tensor:
    """query (T, H, D), key and value (T, K, D) -> (T, H, D): softmax(scale q k^T) v within each sequence."""
    tokens, heads, width = query.shape
    assert key.shape == value.shape == (tokens, key.shape[1], width)
    assert heads % key.shape[1] == 0
    assert query.dtype == key.dtype == value.dtype
    assert all(tensor.stride(-1) == 1 for tensor in (query, key, value))
    assert cu_seqlens.dtype == torch.int32
    bounds = cu_seqlens.tolist()
    assert bounds[0] == 0
    assert bounds[-1] == tokens
    assert isinstance(max_seqlen, int), "reading it from the device would wait for the device"
    assert max_seqlen == max(end - start for start, end in pairwise(bounds))
    group = heads // key.shape[1]
    outputs = []
    for start, end in pairwise(bounds):
        q = query[start:end].transpose(0, 1)
        k, v = (tensor[start:end].transpose(0, 1).repeat_interleave(group, 0) for tensor in (key, value))
        scores = (q @ k.mT).float() * (width**-0.5 if scale is None else scale)
        if causal:
            length = end - start
            scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), float("-inf"))
        outputs.append((scores.softmax(-1).to(v.dtype) @ v).transpose(0, 1))
    return torch.cat(outputs)


def reference(*, vision: bool = True) -> Attention:
    """Attention that glues this kernel to a model as the varlen setting glues torch's."""
    AttentionInterface.register(TEXT, LanguageVarlen(kernel))
    AttentionInterface.register(VISION, VisionVarlen(kernel))
    return Attention("varlen", TEXT, VISION if vision else "sdpa")
