"""Which part of a model a parameter belongs to, and how large the parts are."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from triptych.config import PARTS, Part
from triptych.family import Family


def part_of(name: str, family: Family) -> Part:
    """The part that a parameter or module belongs to, by its name; adapters belong to the layer they adapt."""
    name = name.removeprefix("base_model.model.")
    if any(name == merger or name.startswith(f"{merger}.") for merger in family.merger):
        return "merger"
    return "vision" if name == family.vision or name.startswith(f"{family.vision}.") else "language"


@dataclass(frozen=True, slots=True)
class PartSize:
    """Parameters of one part."""

    part: Part
    total: int
    trainable: int


def part_sizes(model: nn.Module, family: Family) -> list[PartSize]:
    """Parameters per part, all and trainable."""
    total = dict.fromkeys(PARTS, 0)
    trainable = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        part = part_of(name, family)
        total[part] += parameter.numel()
        trainable[part] += parameter.numel() if parameter.requires_grad else 0
    return [PartSize(part, total[part], trainable[part]) for part in PARTS]
