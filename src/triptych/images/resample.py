"""Resize as torchvision does it, to the last bit: what LLaMA-Factory's images go through; without torch.

Pillow and torchvision weigh the same pixels by the same cubic kernel. Pillow rounds the weights to 22 bits, torchvision
to 16 bits with their sign, so that some pixels differ by 1 or 2 of 255.

    values (h, w, c)  --columns-->  (h, w', c) as bytes  --rows-->  (h', w', c) as bytes
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

REACH = 2.0
"""Of the kernel to each side, in pixels of the coarser of the two images."""
SHARPNESS = -0.5
"""The kernel's slope where it crosses zero, as in Pillow."""
BLOCK = 32
"""Rows that are computed together: they need few rows of the source beside each other's."""


def resize_like_torchvision(image: Image.Image, height: int, width: int) -> Image.Image:
    """Bicubic with antialiasing, each direction rounded to bytes.

    Args:
        image: in RGB or in grey of 8 bits.
        height: of the result, px.
        width: of the result, px.
    """
    values = np.asarray(image)
    planes = values[:, :, None] if values.ndim == 2 else values
    turned = _along_rows(planes.transpose(1, 0, 2), width)
    resized = _along_rows(turned.transpose(1, 0, 2), height)
    return Image.fromarray(resized[:, :, 0] if values.ndim == 2 else resized)


@dataclass(frozen=True, slots=True)
class _Weights:
    """Which rows of the source each row of the result is a mean of."""

    first: NDArray[np.int64]
    """(rows,): number of the first one."""
    taps: NDArray[np.int64]
    """(rows, most): weight of it and of those after it, times 2^bits."""
    bits: int


def _along_rows(values: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Bring (rows, others, c) to ``count`` rows."""
    rows, others, channels = values.shape
    if rows == count:
        return values
    source = np.ascontiguousarray(values).reshape(rows, others * channels)
    weights = _weights(rows, count)
    out = np.empty((count, others * channels), np.uint8)
    for start in range(0, count, BLOCK):
        first, taps = weights.first[start : start + BLOCK], weights.taps[start : start + BLOCK]
        low, high = int(first[0]), int(min(first[-1] + taps.shape[1], rows))
        matrix = np.zeros((len(first), high - low))
        places = first[:, None] - low + np.arange(taps.shape[1])
        inside = places < high - low  # taps beyond the source have no weight
        matrix[np.nonzero(inside)[0], places[inside]] = taps[inside]
        # Whole numbers below 2^53: sums in float64 are exact, in any order.
        sums = matrix @ source[low:high].astype(np.float64)
        rounded = np.floor((sums + 2.0 ** (weights.bits - 1)) / 2.0**weights.bits)
        out[start : start + len(first)] = rounded.clip(0, 255)
    return out.reshape(count, others, channels)


def _weights(source: int, count: int) -> _Weights:
    scale = source / count
    stretch = max(scale, 1.0)
    support = REACH * stretch
    most = int(np.ceil(support)) * 2 + 1
    centers = scale * (np.arange(count) + 0.5)
    first = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    used = np.minimum((centers + support + 0.5).astype(np.int64), source) - first
    steps = np.arange(most)
    weights = _cubic((steps + first[:, None] - centers[:, None] + 0.5) * (1.0 / stretch))
    weights[steps >= used[:, None]] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    bits = _bits(float(weights.max()))
    scaled = weights * 2.0**bits
    return _Weights(first, np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int64), bits)


def _bits(largest: float) -> int:
    """By how many bits weights are shifted so that the largest still fits into 16 bits with a sign; at most 22."""
    bits = 0
    while bits < 22 and int(0.5 + largest * 2 ** (bits + 1)) < 2**15:
        bits += 1
    return bits


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(distance)
    near = ((SHARPNESS + 2) * x - (SHARPNESS + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * SHARPNESS
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
