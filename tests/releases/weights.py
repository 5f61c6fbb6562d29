"""Weights and inputs that every release of transformers makes alike: values follow from a tensor's name."""

from __future__ import annotations

import inspect
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

IMAGE, START, END = 598, 595, 596
GRID = (1, 4, 6)
QUESTION = (10, 20, 30, 40, 50)


def value(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Values of a tensor, the same under every name that a release gives it."""
    own = name
    for prefix in ("model.language_model.", "language_model.model.", "model.visual.", "visual.", "model."):
        if own.startswith(prefix):
            own = own.removeprefix(prefix)
            break
    random = np.random.RandomState(zlib.crc32(own.encode()))  # its stream never changes
    spread = random.standard_normal(shape).astype(np.float32) * 0.2
    return torch.from_numpy(1 + spread if "norm" in own or "ln_q" in own else spread)


def fill(folder: Path) -> dict[str, list[int]]:
    """Replace the values of a saved model; returns names and shapes."""
    path = folder / "model.safetensors"
    shapes = {name: list(tensor.shape) for name, tensor in sorted(load_file(path).items())}
    write(folder, shapes)
    return shapes


def write(folder: Path, shapes: dict[str, list[int]]) -> None:
    """Write the weights of these names and shapes."""
    tensors = {name: value(name, tuple(shape)) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def positions() -> torch.Tensor:
    """(3, 1, T) temporal, height and width: 3 tokens of text, an image of 2 x 3, 6 tokens of text."""
    rows, columns = GRID[1] // 2, GRID[2] // 2
    image = [(3, 3 + row, 3 + column) for row in range(rows) for column in range(columns)]
    after = 3 + max(rows, columns)
    places = [(k, k, k) for k in range(3)] + image + [(after + k,) * 3 for k in range(1 + len(QUESTION))]
    return torch.tensor(places).T[:, None]


def inputs(model: Any) -> dict[str, Any]:
    """An image between two texts, for a model of transformers."""
    tokens = GRID[1] * GRID[2] // 4
    ids = torch.tensor([[7, 8, START, *[IMAGE] * tokens, END, *QUESTION]])
    pixels = np.random.RandomState(1).standard_normal((GRID[1] * GRID[2], 3 * 2 * 14 * 14)).astype(np.float32)
    kinds = {"mm_token_type_ids": (ids == IMAGE).int()}  # newer releases ask which tokens are of an image
    return {
        **(kinds if "mm_token_type_ids" in inspect.signature(model.forward).parameters else {}),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "position_ids": positions(),  # not all releases make them in the forward pass
        "pixel_values": torch.from_numpy(pixels),
        "image_grid_thw": torch.tensor([GRID]),
    }


def answer(folder: Path) -> tuple[dict[str, list[int]], torch.Tensor]:
    """Names and shapes of the weights, and the logits that the release gave (5, 24)."""
    content = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
    return content["tensors"], torch.tensor(content["logits"])
