"""Floating-point operations of a row, and how much of the device's peak they use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from triptych.family.family import Family
from triptych.family.selectors import PARTS, Part, Place
from triptych.family.shapes import read_shapes
from triptych.forward.batch import Batch
from triptych.model.parts import HEAD, PartMap, role, values_of

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


FIRST = (PARTS.index("vision"), -1)
"""Depth of the patch embedding."""


def device_peak() -> float | None:
    """Peak rate of the current device, FLOP/s; None where it is not known."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for key, peak in PEAKS.items() if key in name), None)


class FlopCounter:
    """Model FLOPs of a row: 2 per weight forward, 2 for the gradient of the input, 2 for that of the weight.

    After Kaplan et al. 2020 (section 2.1) and Chowdhery et al. 2022 (appendix B), with what does not happen left out:
    no weight gradient in frozen weights, no gradient at all below the lowest layer that learns, and of the experts only
    those that a token goes to. Attention scores and sums count 4 * width * length^2 per layer forward, half of it where
    causal, and twice that backward.
    """

    def __init__(self, model: nn.Module, family: Family, config: Any) -> None:
        shapes = read_shapes(config.to_dict())
        text, vision = shapes.language, shapes.vision
        parts = PartMap(model, family)
        lowest = min((_depth(parts.place(name)) for name, p in model.named_parameters() if p.requires_grad))
        # A token goes through some of the experts only.
        used = text.experts_per_token / text.experts if text.experts else 1.0
        self.passes = dict.fromkeys((*PARTS, "head"), 0.0)
        for name, parameter in model.named_parameters():
            looked_up = "embed_tokens" in name or "pos_embed" in name
            if looked_up or parameter.ndim < 2 or role(name, parameter) == "original":
                continue
            place = parts.place(name)
            weights = values_of(parameter) * (used if ".experts." in name else 1.0)
            key = "head" if HEAD in name else place.part
            # Pixels take no gradient, so below the patch embedding nothing is computed backward.
            inputs = _depth(place) >= lowest and _depth(place) > FIRST
            self.passes[key] += 2 * weights * (1 + inputs + parameter.requires_grad)
        if not self.passes["head"]:  # tied to the embedding
            learns = any(p.requires_grad and "embed_tokens" in name for name, p in model.named_parameters())
            self.passes["head"] = 2.0 * text.vocabulary * text.width * (2 + learns)
        # Layers with a recurrent state cost nothing that grows with the square of the length.
        self.text_attention = 2 * text.width * _attention_passes("language", text.attending, lowest)
        self.vision_attention = 4 * vision.width * _attention_passes("vision", range(vision.depth), lowest)
        self.merge = vision.merge_size**2

    def row(self, batch: Batch) -> float:
        """FLOPs of one forward and backward pass over ``batch``, recomputation not counted."""
        patches = len(batch.pixels)
        units = {
            "vision": patches,
            "merger": patches // self.merge,
            "language": batch.input_ids.shape[1],
            "head": len(batch.targets if batch.distinct is None else batch.distinct.targets),
        }
        total = sum(count * self.passes[key] for key, count in units.items())
        paths = batch.paths
        # What a sample shares with one before it is computed there.
        samples = sum(n * n - (n - own) ** 2 for n, own in zip(paths.lengths, paths.own, strict=True))
        # What else the row shows, the tower does not see.
        images = sum(batch.image_patches[image] ** 2 for image in batch.decoded)
        return float(total + self.text_attention * samples + self.vision_attention * images)


def _depth(place: Place) -> tuple[int, int]:
    """Orders places as the data goes through them."""
    return PARTS.index(place.part), place.layer


def _attention_passes(part: Part, layers: Iterable[int], lowest: tuple[int, int]) -> int:
    """Passes through attention over all layers: 1 forward, and 2 backward where anything at or below it learns."""
    return sum(3 if _depth(Place(part, layer)) >= lowest else 1 for layer in layers)
