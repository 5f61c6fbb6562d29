"""torch.compile of the repeated language layers: their norms, projections and MLPs, compiled once for all of them."""

from __future__ import annotations

import importlib.util
import os
import shutil

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from triptych.errors import ConfigError
from triptych.family.family import Family
from triptych.model.parts import part_of

# Their kernels are compiled by the packages they come from, and torch's tracer does not follow them.
LEFT_ALONE = ("linear_attn",)


def check_compiler(device: torch.device) -> None:
    """
    Raises:
        ConfigError: if torch.compile lacks what it needs to make code for ``device``.
    """
    # On CUDA, Triton compiles its launchers in C.
    names = (
        (os.environ.get("CC"), "gcc", "clang") if device.type == "cuda" else (os.environ.get("CXX"), "g++", "clang++")
    )
    if not any(name and shutil.which(name) for name in names):
        raise ConfigError(
            f"train.compile needs a compiler ({' or '.join(name for name in names if name)}); install one"
        )
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ConfigError("train.compile needs the package triton on a GPU; install it")


def compile_layers(model: nn.Module, family: Family, *, backend: str = "inductor") -> int:
    """Let the parts of every language layer compile themselves when they are first called; returns how many.

    The parts, not the layer: checkpointing wraps the layer, and where attention breaks the graph (sample by sample),
    torch would then give up on all of it. One compilation serves all layers and all lengths of rows.
    """
    parts = [
        part
        for name, layer in model.named_modules()
        if isinstance(layer, GradientCheckpointingLayer) and part_of(name, family) == "language"
        for own_name, part in layer.named_children()
        if own_name not in LEFT_ALONE
    ]
    for part in parts:
        part.compile(backend=backend, dynamic=True)
    return len(parts)
