"""Find which samples begin alike: an order in which they stand side by side, and what each shares with the one before.

Five samples, one word a letter, and how many tokens each shares with the sample before it in that order:

    order   a b c d     a b c e f     a b x     g h     g i
    shared  0           3             2         0       1

That is a trie without its nodes: any two samples share the least of the numbers between them. Ids are compared, never
their hashes alone; an image is one key, equal where image and size are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

LEAST = 32
"""Tokens that samples must share at their start to be taken together; less is not worth the bookkeeping."""

KEYS_AT_ONCE = 64_000_000
"""Keys that are sorted together, 4 bytes each."""

_BLOCK = 16
"""Keys of two neighbours that are compared at once."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Some samples as keys: a token is its id, image n is -1 - n."""

    samples: NDArray[np.int64]
    """(n,) their numbers"""
    flat: NDArray[np.int32]
    """Their keys, one sample after the other"""
    bounds: NDArray[np.int64]
    """(n + 1,) where each sample starts among them, and their end"""

    def take(self, chosen: NDArray[np.bool_]) -> Keys:
        """Those of the samples that are chosen."""
        lengths = np.diff(self.bounds)
        flat = self.flat[np.repeat(chosen, lengths)]
        return Keys(self.samples[chosen], flat, _bounds(lengths[chosen]))


@dataclass(frozen=True, slots=True)
class Prefixes:
    """K samples in an order in which those that begin alike stand side by side."""

    samples: NDArray[np.int64]
    """(K,) the sample at each place"""
    tokens: NDArray[np.int64]
    """(K,) tokens, images included, that it shares with the sample before; 0 for fewer than ``LEAST``"""
    image_tokens: NDArray[np.int64]
    """(K,) those of them that are of images"""


def find_prefixes(read: Callable[[], Iterator[Keys]], image_tokens: NDArray[np.int64], count: int) -> Prefixes:
    """Which of ``count`` samples begin alike.

    Args:
        read: gives the keys of all samples, some samples at a time, in any order; called several times.
        image_tokens: (I,) language tokens of each image.
        count: K; the samples are numbered from 0.

    Memory is that of ``KEYS_AT_ONCE`` keys, or of all samples that begin with the same ``LEAST`` tokens if these are
    more, beside some numbers per sample.
    """
    heads, lengths = np.zeros(count, np.uint64), np.zeros(count, np.int64)
    for keys in read():
        heads[keys.samples] = _heads(keys, image_tokens)
        lengths[keys.samples] = np.diff(keys.bounds)
    parts = _partition(heads, lengths)
    found = [_sort(_gather(read(), parts == part), image_tokens) for part in range(1, int(parts.max(initial=0)) + 1)]
    alone = np.flatnonzero(parts == 0)
    zeros = np.zeros(len(alone), np.int64)
    columns = zip(*(*found, (alone, zeros, zeros)), strict=True)
    return Prefixes(*(np.concatenate(column) for column in columns))


def _heads(keys: Keys, image_tokens: NDArray[np.int64]) -> NDArray[np.uint64]:
    """(n,) hash of the shortest start of each sample that has ``LEAST`` tokens; 0 for a sample that has fewer."""
    lengths = np.diff(keys.bounds)
    columns = np.arange(LEAST)
    inside = columns < lengths[:, None]
    values = (
        keys.flat[np.minimum(keys.bounds[:-1, None] + columns, max(0, len(keys.flat) - 1))] if len(keys.flat) else 0
    )
    values = np.where(inside, values, 0)
    before = np.cumsum(np.where(inside, _widths(values, image_tokens), 0), 1)
    reached = before >= LEAST
    counted = inside & (np.arange(LEAST) <= np.argmax(reached, 1)[:, None])
    factors = np.random.default_rng(0).integers(1, 2**63, LEAST, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    hashes = np.where(counted, _mixed(values) * factors, np.uint64(0)).sum(1, dtype=np.uint64)
    return np.where(reached.any(1), hashes | np.uint64(1), np.uint64(0))


def _mixed(values: NDArray[np.int32]) -> NDArray[np.uint64]:
    """Each value's bits spread over 64 (Steele et al. 2014, SplitMix)."""
    mixed = values.astype(np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _widths(values: NDArray[np.int32], image_tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """Language tokens of each key."""
    if not len(image_tokens):
        return np.ones(values.shape, np.int64)
    return np.where(values < 0, image_tokens[np.maximum(-1 - values.astype(np.int64), 0)], 1)


def _partition(heads: NDArray[np.uint64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """(K,) 0 for a sample whose start no other has, else the number of the part that it is sorted in."""
    _, inverse, counts = np.unique(heads, return_inverse=True, return_counts=True)
    shares = (counts[inverse] > 1) & (heads > 0)
    keys = np.bincount(inverse, np.where(shares, lengths, 0))
    parts = np.floor(np.cumsum(keys) / KEYS_AT_ONCE).astype(np.int64)
    _, numbers = np.unique(parts[inverse[shares]], return_inverse=True)
    result = np.zeros(len(heads), np.int64)
    result[shares] = numbers + 1
    return result


def _gather(pieces: Iterator[Keys], chosen: NDArray[np.bool_]) -> Keys:
    taken = [piece.take(chosen[piece.samples]) for piece in pieces]
    flat = np.concatenate([piece.flat for piece in taken])
    lengths = np.concatenate([np.diff(piece.bounds) for piece in taken])
    return Keys(np.concatenate([piece.samples for piece in taken]), flat, _bounds(lengths))


def _sort(
    keys: Keys, image_tokens: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The samples in order, and the tokens and image tokens that each shares with the one before."""
    offsets, content = pa.py_buffer(keys.bounds * keys.flat.itemsize), pa.py_buffer(keys.flat)
    strings = pa.Array.from_buffers(pa.large_binary(), len(keys.samples), [None, offsets, content])
    order = pc.sort_indices(strings).to_numpy().astype(np.int64)
    starts, lengths = keys.bounds[:-1][order], np.diff(keys.bounds)[order]
    ends = starts[1:] + _common(keys.flat, starts, lengths)
    places = np.flatnonzero(keys.flat < 0)
    running = np.concatenate(([0], np.cumsum(image_tokens[-1 - keys.flat[places].astype(np.int64)])))
    first, last = np.searchsorted(places, starts[1:]), np.searchsorted(places, ends)
    images = running[last] - running[first]
    tokens = ends - starts[1:] - (last - first) + images
    worth = tokens >= LEAST
    tokens, images = (np.concatenate(([0], np.where(worth, values, 0))) for values in (tokens, images))
    return keys.samples[order], tokens, images


def _common(flat: NDArray[np.int32], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n - 1,) keys that each of n samples but the first shares with the one before."""
    most = np.minimum(lengths[:-1], lengths[1:])
    common = np.zeros(len(most), np.int64)
    pairs = np.flatnonzero(most)
    while len(pairs):
        left = most[pairs] - common[pairs]
        columns = np.minimum(np.arange(_BLOCK), left[:, None] - 1)  # past the end, the last key once more
        one, other = (flat[(starts[side] + common[pairs])[:, None] + columns] for side in (pairs, pairs + 1))
        differs = one != other
        any_differs = differs.any(1)
        common[pairs] += np.where(any_differs, differs.argmax(1), np.minimum(left, _BLOCK))
        pairs = pairs[~any_differs & (left > _BLOCK)]
    return common


def _bounds(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
