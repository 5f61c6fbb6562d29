"""What a run left: its losses and weights, and whether two runs are one."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file


def losses(output: Path, key: str = "loss") -> list[tuple[int, float]]:
    """Step and loss of every log line that holds one."""
    entries = map(json.loads, (output / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [(entry["step"], entry[key]) for entry in entries if key in entry]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("*model.safetensors")
    return load_file(path)


def same(left: Path, right: Path) -> bool:
    """Whether two folders hold the same weights to the last bit."""
    one, other = weights(left), weights(right)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
