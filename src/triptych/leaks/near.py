"""Images that look the same: re-encoded, resized, or cropped by up to a fifth; every image is decoded once, small.

A perceptual hash (the signs of the 64 lowest frequencies) finds candidates: of each image the hash of the whole and of
some crops. Each candidate is then looked at: one image is laid over the other at several scales and places, and they
are near where the best correlation is high. So a hash that agrees by chance brings no pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from triptych.images.measure import ImageError
from triptych.pages.thumbnails import upright

SIDE = 64
"""Sides of the grey copies that are compared, px."""
COMPARED = 32
"""Sides of the copies that are laid over each other, px."""
FREQUENCIES = 32
"""Sides of what is transformed."""
MOST_BITS = 14
"""Of 64 that may differ in a candidate."""
FLAT = 4.0
"""Standard deviation of grey under which an image shows nothing to compare by."""
SAME = 0.94
"""Correlation from which on two images are near."""
CROPS = tuple((kept, x, y) for kept in (0.92, 0.84) for x in (0.0, 0.5, 1.0) for y in (0.0, 0.5, 1.0))
"""(share of each side that is kept, place of the rest: 0 to 1)"""
SCALES = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8)
ASPECT = 0.27
"""Largest difference of the aspect ratios' logarithms: what cropping a fifth of one side gives."""
Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Looks:
    """What L images look like."""

    grey: NDArray[np.uint8]
    """(L, side, side)"""
    aspect: NDArray[np.float64]
    """(L,) logarithm of width over height"""
    known: NDArray[np.bool_]
    """(L,) whether the image decodes and shows something"""


def look(locations: Sequence[str], advance: Advance, workers: int) -> Looks:
    """Decode images, small and grey; those that do not decode, or are of one colour, are left out of ``known``."""
    grey = np.zeros((len(locations), SIDE, SIDE), np.uint8)
    aspect, known = np.zeros(len(locations)), np.zeros(len(locations), np.bool_)

    def one(number: int) -> None:
        try:
            image = upright(locations[number], SIDE)
        except ImageError:
            return
        aspect[number] = np.log(image.width / image.height)
        grey[number] = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))
        known[number] = grey[number].std() > FLAT

    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(one, range(len(locations))):
            advance(1)
    return Looks(grey, aspect, known)


def near_pairs(looks: Looks) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of images that look the same."""
    numbers = np.flatnonzero(looks.known)
    whole = _hashes(looks.grey[numbers])
    found: set[tuple[int, int]] = set()
    for crop in (None, *CROPS):
        hashes = whole if crop is None else _hashes(_cropped(looks.grey[numbers], *crop))
        for one, two in _candidates(whole, hashes):
            i, j = sorted((int(numbers[one]), int(numbers[two])))
            if i != j:
                found.add((i, j))
    return sorted(pair for pair in found if _is_near(looks, *pair))


def _hashes(grey: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """(L,) 64 signs: which of the lowest frequencies are over their median."""
    if not len(grey):
        return np.empty(0, np.uint64)
    step = grey.shape[-1] // FREQUENCIES
    small = grey.reshape(len(grey), FREQUENCIES, step, FREQUENCIES, step).mean(axis=(2, 4))
    places = np.arange(FREQUENCIES)
    cosines = np.cos(np.pi * np.arange(1, 9)[:, None] * (2 * places + 1) / (2 * FREQUENCIES))
    values = np.einsum("ux,nxy,vy->nuv", cosines, small, cosines, optimize=True).reshape(len(grey), 64)
    bits = values > np.median(values, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def _cropped(grey: NDArray[np.uint8], kept: float, x: float, y: float) -> NDArray[np.uint8]:
    """Part of each image at the size of the whole, by the nearest pixels."""
    side = grey.shape[-1]
    rows, columns = (((1 - kept) * place * side + (np.arange(side) + 0.5) * kept).astype(np.int64) for place in (y, x))
    return grey[:, rows[:, None], columns[None, :]]


def _candidates(one: NDArray[np.uint64], two: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Pairs whose hashes differ in at most ``MOST_BITS`` bits and agree in one of eight bytes, which almost all do."""
    bytes_one, bytes_two = (values.view(np.uint8).reshape(-1, 8) for values in (one, two))
    for band in range(8):
        order = np.argsort(bytes_two[:, band], kind="stable")
        starts = np.searchsorted(bytes_two[order, band], np.arange(257))
        for value in range(256):
            left = np.flatnonzero(bytes_one[:, band] == value)
            right = order[starts[value] : starts[value + 1]]
            if not len(left) or not len(right):
                continue
            for block in np.array_split(left, max(1, len(left) * len(right) // 4_000_000)):
                apart = _bits(one[block][:, None] ^ two[right][None, :])
                for i, j in np.argwhere(apart <= MOST_BITS).tolist():
                    yield int(block[i]), int(right[j])


def _bits(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Bits that are set in each of the numbers, added up in parallel (Warren, Hacker's Delight, 5-1)."""
    pairs, fours, bytes_, ones = (np.uint64(int(mask, 16)) for mask in ("5" * 16, "3" * 16, "0f" * 8, "01" * 8))
    values = values - ((values >> np.uint64(1)) & pairs)
    values = (values & fours) + ((values >> np.uint64(2)) & fours)
    values = (values + (values >> np.uint64(4))) & bytes_
    return (values * ones) >> np.uint64(56)


def _is_near(looks: Looks, i: int, j: int) -> bool:
    """Whether one image lies in the other, at one of the scales."""
    if abs(looks.aspect[i] - looks.aspect[j]) > ASPECT:
        return False
    one, two = (np.asarray(Image.fromarray(looks.grey[k]).reduce(SIDE // COMPARED)) for k in (i, j))
    return any(_best_correlation(part, whole) >= SAME for part, whole in ((one, two), (two, one)))


def _best_correlation(part: NDArray[np.uint8], whole: NDArray[np.uint8]) -> float:
    """The highest correlation of ``part``, scaled down, with any place in ``whole``."""
    best = 0.0
    image = Image.fromarray(part)
    for high in SCALES:
        for wide in SCALES:
            if abs(high - wide) > 0.09:
                continue
            size = round(COMPARED * wide), round(COMPARED * high)
            pattern = np.asarray(image.resize(size, Image.Resampling.BOX), np.float64)
            pattern = (pattern - pattern.mean()) / (pattern.std() + 1e-9)
            windows = np.lib.stride_tricks.sliding_window_view(whole, pattern.shape).astype(np.float64)
            means, spreads = windows.mean(axis=(2, 3)), windows.std(axis=(2, 3)) + 1e-9
            sums = np.einsum("abxy,xy->ab", windows, pattern, optimize=True) / pattern.size
            best = max(best, float(((sums - means * pattern.mean()) / spreads).max()))
            if best >= SAME:
                return best
    return best
