"""Which part and layer of a model a parameter belongs to, and how much of every part learns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from triptych.family.family import Family
from triptych.family.selectors import PARTS, Part, Place

Role = Literal["full", "adapter", "frozen", "original"]

_PEFT = "base_model.model."
HEAD = "lm_head"


def inside(name: str, module: str) -> bool:
    """Whether a parameter or module is this module or in it, by their names."""
    return name == module or name.startswith(f"{module}.")


def part_of(name: str, family: Family) -> Part:
    """The part that a parameter or module belongs to, by its name; adapters belong to the layer they adapt."""
    name = name.removeprefix(_PEFT)
    if any(inside(name, merger) for merger in family.merger):
        return "merger"
    return "vision" if inside(name, family.vision) else "language"


def plain_name(name: str) -> str:
    """A parameter's name without what FSDP, compiling and checkpointing wrap around modules."""
    return re.sub(r"(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.", "", name)


class PartMap:
    """Where in a model its parameters are; adapters are where the layer is that they adapt."""

    def __init__(self, model: nn.Module, family: Family) -> None:
        """
        Args:
            model: with or without adapters.
            family: names its parts.
        """
        self._family = family
        self._lists: dict[Part, str] = {}
        self.counts: dict[Part, int] = dict.fromkeys(PARTS, 0)
        """Layers of every part"""
        self._before: list[str] = []
        modules = {name.removeprefix(_PEFT): module for name, module in model.named_modules()}
        for name, module in modules.items():
            part = part_of(name, family)
            # The layers of a part are its longest list of modules; a merger has none that run one after another.
            if part != "merger" and isinstance(module, nn.ModuleList) and len(module) > self.counts[part]:
                self._lists[part], self.counts[part] = name, len(module)
        for layers in self._lists.values():
            parent, _, own = layers.rpartition(".")
            self._before += [f"{parent}.{name}" for name, _ in modules[parent].named_parameters(recurse=False)]
            # Modules are registered in the order in which they run.
            for name, _ in modules[parent].named_children():
                if name == own:
                    break
                self._before.append(f"{parent}.{name}")

    def place(self, name: str) -> Place:
        """Where the parameter or module of this name is."""
        name = name.removeprefix(_PEFT)
        part = part_of(name, self._family)
        layers = self._lists.get(part)
        if layers is None:
            return Place(part, 0)
        if name.startswith(f"{layers}."):
            return Place(part, int(name[len(layers) + 1 :].partition(".")[0]))
        before = any(inside(name, other) for other in self._before)
        return Place(part, -1 if before else self.counts[part])


def role(name: str, parameter: nn.Parameter) -> Role:
    """What a parameter does in training: ``original`` is the unused first state of a copy that is trained in full."""
    if ".original_module." in name:
        return "original"
    if ".lora_" in name:
        return "adapter"
    return "full" if parameter.requires_grad else "frozen"


def learning_parts(model: nn.Module, family: Family) -> set[Part]:
    """The parts of a model, set up for training, in which something learns."""
    return {part_of(name, family) for name, parameter in model.named_parameters() if parameter.requires_grad}


def values_of(parameter: nn.Parameter) -> int:
    """Number of weights in a parameter, also where several are packed into a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()


@dataclass(frozen=True, slots=True)
class PartSize:
    """Parameters of one part."""

    part: Part
    total: int
    """Of the model itself: trained in full or frozen"""
    full: int
    adapters: int
    frozen: int
    rates: tuple[float, ...]
    """Peak learning rates of what learns, ascending"""


def part_sizes(model: nn.Module, family: Family, rates: Mapping[str, float]) -> list[PartSize]:
    """Parameters per part by what they do in training.

    Args:
        model: set up for training.
        family: names its parts.
        rates: learning rate of every parameter that learns, by its name.
    """
    counted: dict[tuple[Part, Role], int] = {}
    found: dict[Part, set[float]] = {part: set() for part in PARTS}
    for name, parameter in model.named_parameters():
        part = part_of(name, family)
        key = (part, role(name, parameter))
        counted[key] = counted.get(key, 0) + values_of(parameter)
        if parameter.requires_grad:
            found[part].add(rates[name])
    sizes = []
    for part in PARTS:
        full, adapters, frozen = (counted.get((part, kind), 0) for kind in ("full", "adapter", "frozen"))
        sizes.append(PartSize(part, full + frozen, full, adapters, frozen, tuple(sorted(found[part]))))
    return sizes
