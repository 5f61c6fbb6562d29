"""How much a turn or a sample counts in the loss, by whichever key the data says it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from triptych.sources.records import json_type
from triptych.text.shapes.found import ShapeError

_NUMBER = re.compile(r"\d{1,9}(\.\d{0,9})?")
SAMPLE_KEYS = ("weight", "loss_weight", "sample_weight", "loss_scale", "loss", "train", "trainable")
"""Keys of a record; text under them is a note."""
TURN_KEYS = ("loss", "train", "trainable", "weight", "loss_weight", "loss_scale", "loss_mask")
"""Keys of a turn: true or false, or a weight."""
_WHETHER = ("train", "trainable")
LEAST, MOST = 1e-6, 1e6
"""Weights other than 0: products of three of them are far from the ends of float32."""


def loss_weight(data: Mapping[str, Any], keys: Sequence[str]) -> float:
    """The weight that ``data`` gives itself under ``keys``; 1 where it says nothing, 0 for "not learned".

    Raises:
        ShapeError: for a value that is no weight, or two that contradict each other.
    """
    found: dict[str, float] = {}
    for key in keys:
        value = data.get(key)
        if value is None:  # tables write what is not there as null
            continue
        if not isinstance(value, bool | int | float) or not (value == 0 or LEAST <= value <= MOST):
            raise ShapeError(
                f"`{key}` is true, false, or a weight: 0, or from {LEAST:f} to {MOST:,.0f}; this is {_shown(value)}"
            )
        if key == "loss_mask" and value not in (0, 1):
            raise ShapeError(f"`{key}` is 0 or 1, this is {_shown(value)}; a weight goes under `weight`")
        found[key] = float(value)
    said = {value for value in found.values() if value != 1}  # 1 and true: learned, which any other weight says, too
    if len(said) > 1 or (0 in said and 1 in found.values()):
        raise ShapeError(f"{' and '.join(f'`{key}`' for key in found)} contradict each other; keep one")
    return said.pop() if said else 1.0


def record_weight(data: Mapping[str, Any], keys: Sequence[str]) -> float:
    """The weight that a record gives itself under ``keys`` of it, also one in a text; other texts are notes.

    Raises:
        ShapeError: as ``loss_weight``.
    """
    found = {key: written_weight(key, data[key]) for key in keys}
    return loss_weight(found, [key for key in keys if not isinstance(found[key], str)])


def written_weight(key: str, value: Any) -> Any:
    """A number, true or false that stands in a text, as all cells of a CSV file do; any other value as it is.

    Where the key asks whether something is learned, another number than 0 and 1 is a note: ``train: "2014"``.
    """
    text = value.strip().lower() if isinstance(value, str) else ""
    if text in ("true", "false"):
        return text == "true"
    if not _NUMBER.fullmatch(text) or (key in _WHETHER and float(text) not in (0, 1)):
        return value
    return float(text)


def _shown(value: Any) -> str:
    return str(value)[:20] if isinstance(value, int | float) else json_type(value)
