"""How the samples of a row are kept from seeing each other, and what happens where a model cannot do it.

Row 0 of the position ids is enough for attention: with four rows and no mask, transformers starts a new sequence
wherever it falls back to 0. Layers with a recurrent state (Qwen3.5's linear attention) carry it across samples unless
they are told where samples start and their kernels can obey; otherwise every sample goes through the model alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils.import_utils import is_causal_conv1d_available, is_flash_linear_attention_available

from triptych.family.family import Family
from triptych.forward.batch import Batch

# Kernels that keep samples apart in recurrent layers: the state, and the convolution in front of it.
RECURRENT_KERNELS = {
    "flash-linear-attention": is_flash_linear_attention_available,
    "causal-conv1d": is_causal_conv1d_available,
}


@dataclass(frozen=True, slots=True)
class Isolation:
    """How the samples of a row are kept apart."""

    packs: bool
    """Whether a row goes through the model at once; else sample by sample, with the same loss."""
    recurrent: bool = False
    """Whether the model has layers that must be told where samples start."""
    reason: str = ""
    """Why rows are not packed; for people."""

    def arguments(self, row: Batch) -> dict[str, Any]:
        """What the model is told about the samples of a packed row, besides the position ids."""
        if not (self.packs and self.recurrent):
            return {}
        lengths = row.cu_seqlens.diff()
        samples = torch.arange(len(lengths), dtype=torch.int32, device=lengths.device)
        return {
            "cu_seq_lens_q": row.cu_seqlens,
            "cu_seq_lens_k": row.cu_seqlens,
            "max_length_q": row.max_seqlen,
            "max_length_k": row.max_seqlen,
            # The convolution takes a number per token; without this it would mix the ends of neighbours.
            "seq_idx": samples.repeat_interleave(lengths, output_size=row.input_ids.shape[1])[None],
        }


PACKED = Isolation(packs=True)


def choose_isolation(family: Family, device: torch.device) -> Isolation:
    """How this family's samples are kept apart on ``device`` with what is installed."""
    if not family.recurrent:
        return PACKED
    missing = [package for package, is_usable in RECURRENT_KERNELS.items() if not is_usable()]
    if device.type != "cuda":
        return Isolation(
            packs=False, reason=f"{family.name}'s linear attention keeps packed samples apart on CUDA only"
        )
    if missing:
        return Isolation(
            packs=False,
            reason=f"{family.name}'s linear attention cannot keep packed samples apart without {' and '.join(missing)}",
        )
    return Isolation(packs=True, recurrent=True)
