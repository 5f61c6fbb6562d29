"""Floating-point operations of a row, and how much of the device's peak they use."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from triptych.data.batch import Batch
from triptych.family import Family
from triptych.memory import experts_per_token
from triptych.parts import part_of
from triptych.selectors import PARTS, Part

# Dense bfloat16 matrix-product rate, FLOP/s, from the makers' data sheets; keyed by a part of the device's name.
PEAKS = {
    "B200": 2.25e15,
    "H200": 9.89e14,
    "H100": 9.89e14,
    "A100": 3.12e14,
    "L40S": 3.62e14,
    "A10": 1.25e14,
    "L4": 1.21e14,
    "4090": 1.65e14,
    "3090": 7.1e13,
}


def device_peak() -> float | None:
    """Peak rate of the current device, FLOP/s; None where it is not known."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for key, peak in PEAKS.items() if key in name), None)


class FlopCounter:
    """Model FLOPs of a row: 2 per weight and token forward, 2 for the gradient of the input, 2 for that of the weight.

    After Kaplan et al. 2020 (section 2.1) and Chowdhery et al. 2022 (appendix B), with what does not happen left out:
    no weight gradient in frozen weights, no gradient at all below the lowest trained weight. Attention scores and
    sums count 4 * width * length^2 per layer forward, half of it where causal, and twice that backward.
    """

    def __init__(self, model: nn.Module, family: Family, config: Any) -> None:
        text, vision = config.text_config, config.vision_config
        # A token goes through some of the experts only.
        active = experts_per_token(text) / text.num_experts if experts_per_token(text) else 1.0
        self.forward: dict[str, float] = dict.fromkeys((*PARTS, "head"), 0.0)
        self.weight_grad: dict[str, float] = dict.fromkeys((*PARTS, "head"), 0.0)
        learns: set[Part] = set()
        for name, parameter in model.named_parameters():
            part = part_of(name, family)
            if parameter.requires_grad:
                learns.add(part)
            if "embed_tokens" in name or parameter.ndim < 2:
                continue
            key = "head" if "lm_head" in name else part
            used = parameter.numel() * (active if ".experts." in name else 1)
            self.forward[key] += 2 * used
            self.weight_grad[key] += 2 * used if parameter.requires_grad else 0
        if not self.forward["head"]:  # tied to the embedding
            self.forward["head"] = 2 * text.vocab_size * text.hidden_size
            self.weight_grad["head"] = self.forward["head"] if "language" in learns else 0
        self.input_grad = {
            "vision": "vision" in learns,
            "merger": bool(learns & {"vision", "merger"}),
            "language": True,
            "head": True,
        }
        # Layers with a recurrent state cost nothing that grows with the square of the length.
        attending = [kind != "linear_attention" for kind in getattr(text, "layer_types", None) or []]
        self.text_attention = 2 * (sum(attending) or text.num_hidden_layers) * text.hidden_size
        self.vision_attention = 4 * vision.depth * getattr(vision, "embed_dim", vision.hidden_size)
        self.merge = vision.spatial_merge_size**2

    def row(self, batch: Batch) -> float:
        """FLOPs of one forward and backward pass over ``batch``, recomputation not counted."""
        patches = len(batch.pixels)
        units = {
            "vision": patches,
            "merger": patches // self.merge,
            "language": batch.input_ids.shape[1],
            "head": len(batch.targets),
        }
        total = 0.0
        for key, count in units.items():
            total += count * (self.forward[key] * (1 + self.input_grad[key]) + self.weight_grad[key])
        samples = float(batch.starts.diff().double().square().sum())
        images = float(batch.image_grid_thw.prod(1).double().square().sum())
        total += 3 * self.text_attention * samples
        passes = 3 if self.input_grad["vision"] else 1
        return float(total + passes * self.vision_attention * images)
