"""Adapters that are served beside their base, unmerged: what a server must be told, and where it cannot."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from triptych.exporting.serving.commands import joined, pixel_limits, vllm_options
from triptych.exporting.serving.needs import ServingNeeds
from triptych.family.folders import ADAPTER_CONFIG
from triptych.images.geometry import Geometry

ADAPTER_WEIGHTS = "adapter_model.safetensors"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What ``--max-lora-rank`` of vLLM takes."""


@dataclass(frozen=True, slots=True)
class Adapters:
    """A folder of adapters, as a server sees it."""

    base: str
    """Folder or hub name of the model that they belong to"""
    folder: str
    rank: int
    """Largest of all layers"""
    tower: bool
    """Whether some lie in the vision tower or its projector"""
    obstacle: str | None
    """Why vLLM cannot serve them unmerged, a sentence; None if it can."""

    @property
    def max_rank(self) -> int:
        """The smallest rank that vLLM can be told and that holds these."""
        return next((rank for rank in RANKS if rank >= self.rank), self.rank)


def read_adapters(folder: Path, base: str) -> Adapters | None:
    """What the files of a trained folder say; None if it holds no adapters.

    Args:
        folder: checkpoint, or final model.
        base: folder or hub name of its base.
    """
    path = folder / ADAPTER_CONFIG
    if not path.exists():
        return None
    config = json.loads(path.read_text(encoding="utf-8"))
    with safe_open(folder / ADAPTER_WEIGHTS, "numpy") as weights:
        names = list(weights.keys())
    ranks = [int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())]
    tower = any(".visual." in name for name in names)
    return Adapters(base, str(folder), max(ranks), tower, _obstacle(config, max(ranks)))


def _obstacle(config: dict[str, Any], rank: int) -> str | None:
    if config.get("use_dora"):
        return "vLLM does not serve DoRA unmerged."
    if config.get("modules_to_save"):
        return f"vLLM does not serve unmerged what was trained in full beside adapters ({_some(config)})."
    if config.get("target_parameters"):
        return "vLLM does not serve adapters of experts in peft's form unmerged."
    if rank > RANKS[-1]:
        return f"vLLM serves adapters up to rank {RANKS[-1]}, these have {rank}."
    return None


def _some(config: dict[str, Any]) -> str:
    names: list[str] = config["modules_to_save"]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def vllm_adapters(adapters: Adapters, name: str, wanted: ServingNeeds, geometry: Geometry) -> str:
    """``vllm serve`` of a base with its adapters beside it, to be asked for by ``name``."""
    return joined(
        [
            f"vllm serve {shlex.quote(adapters.base)}",
            f"--lora-modules {shlex.quote(f'{name}={adapters.folder}')}",
            *adapter_options(adapters, wanted, geometry),
        ]
    )


def adapter_options(adapters: Adapters, wanted: ServingNeeds, geometry: Geometry) -> list[str]:
    """Options of ``vllm serve``; those of the run that the base's own folder does not hold are among them."""
    template = shlex.quote(f"{adapters.folder}/chat_template.jinja")
    return [
        f"--enable-lora --max-lora-rank {adapters.max_rank}",
        *(["--enable-tower-connector-lora"] if adapters.tower else []),
        f"--chat-template {template}",
        pixel_limits(geometry),
        *vllm_options(wanted),
    ]
