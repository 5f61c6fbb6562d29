"""Keep samples that begin alike together: units that are packed like samples, and what a row need not compute again.

A unit is a run of neighbours in the order of ``prefixes.py``; one that is larger than a row is cut where the least is
shared:

    shared   0 900 900 | 40 900 | 40 900 900        cut twice, at a cost of 40 tokens each
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triptych.planning.prefixes import Prefixes


@dataclass(frozen=True, slots=True)
class Saved:
    """What n samples need not cost, each after the one before it in its row."""

    tokens: NDArray[np.int64]
    """(n,)"""
    patches: NDArray[np.int64]
    """(n,)"""
    costs: NDArray[np.int64]
    """(n,) in the unit of the samples' costs; empty where these are not known"""

    def take(self, places: NDArray[np.int64]) -> Saved:
        """Those at ``places``."""
        return Saved(*(values[places] if len(values) else values for values in (self.tokens, self.patches, self.costs)))


@dataclass(frozen=True, slots=True)
class Sharing:
    """K samples in the order of ``prefixes.py``, and what each shares with the one before."""

    samples: NDArray[np.int64]
    """(K,) the sample at each place"""
    prefix: NDArray[np.int64]
    """(K,) tokens of the start that it shares, 0 for too few to matter: units are cut there"""
    saved: Saved
    """(K,) what it need not cost directly after that sample"""

    def __len__(self) -> int:
        return len(self.samples)

    def places(self) -> NDArray[np.int64]:
        """(K,) the place of each sample."""
        places = np.empty(len(self), np.int64)
        places[self.samples] = np.arange(len(self))
        return places

    def within(self, places: NDArray[np.int64], joined: NDArray[np.bool_], whole: Saved) -> Saved:
        """What the samples at these places need not cost.

        Args:
            places: (n,) rising wherever ``joined`` says so; the same place twice is a sample that comes twice.
            joined: (n,) whether the one before it is in the same row.
            whole: (K,) what each sample costs, for one that comes twice.
        """
        first, second = np.roll(places, 1)[joined], places[joined]
        found = []
        for values, all_of in zip(_columns(self.saved), _columns(whole), strict=True):
            known = len(values) == len(self) and len(all_of) == len(self)
            result = np.zeros(len(places) if known else 0, np.int64)
            if known:
                twice = all_of[self.samples[second]]
                result[joined] = np.where(first == second, twice, lowest(values, first + 1, second))
            found.append(result)
        return Saved(*found)


def _columns(saved: Saved) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    return saved.tokens, saved.patches, saved.costs


def make_sharing(
    prefixes: Prefixes, patches_per_token: int, costs: NDArray[np.int64] | None, *, images_only: bool
) -> Sharing:
    """
    Args:
        prefixes: of all samples.
        patches_per_token: vision patches that become one token.
        costs: (K,) what each sample need not cost after the one before, by its place; None where it is not known.
        images_only: whether the model computes tokens again and shares features of images only.
    """
    tokens = np.zeros_like(prefixes.tokens) if images_only else prefixes.tokens
    nothing = np.empty(0, np.int64)
    saved = Saved(tokens, prefixes.image_tokens * patches_per_token, nothing if costs is None else costs)
    return Sharing(prefixes.samples, prefixes.tokens, saved)


def lowest(values: NDArray[np.int64], first: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) the lowest of ``values`` from ``first`` to ``last``, both included; 0 where ``last`` comes before."""
    result = np.zeros(len(first), np.int64)
    levels = np.floor(np.log2(np.maximum(last - first + 1, 1))).astype(np.int64)
    levels[last < first] = -1
    table, width = values, 1  # the lowest of ``width`` values from each place on (Bender & Farach-Colton 2000)
    for level in range(int(levels.max(initial=-1)) + 1):
        here = levels == level
        result[here] = np.minimum(table[first[here]], table[last[here] - width + 1])
        table = np.minimum(table[: max(0, len(table) - width)], table[width:])
        width *= 2
    return result


@dataclass(frozen=True, slots=True)
class Units:
    """The n samples of an epoch in units."""

    samples: NDArray[np.int64]
    """(n,) in order of their places, unit by unit"""
    places: NDArray[np.int64]
    """(n,) of these samples"""
    bounds: NDArray[np.int64]
    """(U + 1,) where each unit starts among them, and their end"""

    def sums(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """(U,) of (K,) values of all samples."""
        running = np.concatenate(([0], np.cumsum(values[self.samples])))
        return np.asarray(running[self.bounds[1:]] - running[self.bounds[:-1]], np.int64)


def make_units(
    drawn: NDArray[np.int64],
    sharing: Sharing,
    sizes: Sequence[NDArray[np.int64]],
    capacity: Sequence[int],
    random: np.random.Generator,
) -> Units:
    """Put the samples of an epoch into units that fit a row.

    Args:
        drawn: (n,) the samples; one may come several times.
        sharing: of all samples.
        sizes: what a row has limits of: (K,) of each sample.
        capacity: these limits.
        random: decides which parts of a unit that is too large stay together.
    """
    all_places = sharing.places()
    places = np.sort(all_places[drawn], kind="stable")
    samples = sharing.samples[places]
    shared = np.zeros(len(places), np.int64)
    again = places[1:] == places[:-1]
    most = int(sharing.prefix.max(initial=0)) + 1  # of a sample that comes twice
    shared[1:] = np.where(again, most, lowest(sharing.prefix, places[:-1] + 1, places[1:]))
    bounds = np.append(np.flatnonzero(shared == 0), len(places))
    running = [np.concatenate(([0], np.cumsum(size[samples]))) for size in sizes]
    over = np.zeros(len(bounds) - 1, np.bool_)
    for sums, limit in zip(running, capacity, strict=True):
        over |= np.diff(sums[bounds]) > limit
    splitter = _Splitter(shared, running, capacity, random)
    parts = [
        part
        for unit in np.flatnonzero(over).tolist()
        for part in splitter.split(int(bounds[unit]), int(bounds[unit + 1]))
    ]
    whole = np.repeat(~over, np.diff(bounds))
    order = np.concatenate((np.flatnonzero(whole), *parts))
    lengths = np.concatenate((np.diff(bounds)[~over], np.array([len(part) for part in parts], np.int64)))
    return Units(samples[order], places[order], np.concatenate(([0], np.cumsum(lengths))))


class _Splitter:
    """Cuts units that are too large for a row."""

    def __init__(
        self,
        shared: NDArray[np.int64],
        running: Sequence[NDArray[np.int64]],
        capacity: Sequence[int],
        random: np.random.Generator,
    ) -> None:
        self._shared = shared
        self._running = running
        self._capacity = list(capacity)
        self._random = random

    def split(self, start: int, end: int) -> list[NDArray[np.int64]]:
        """The samples from ``start`` to ``end`` in parts that fit, each in order.

        Parts are cut where the least is shared; what is cut apart is put together again at random as far as it fits,
        since it shares that much still.
        """
        parts: list[NDArray[np.int64]] = []
        waiting = [(start, end)]
        while waiting:
            first, last = waiting.pop()
            children = self._children(first, last)
            kept: list[tuple[int, int]] = []
            used = [0] * len(self._capacity)
            for child in children:
                size = [int(sums[child[1]] - sums[child[0]]) for sums in self._running]
                if child[1] - child[0] > 1 and any(map(int.__gt__, size, self._capacity)):
                    waiting.append(child)
                    continue
                both = list(map(int.__add__, used, size))
                if any(map(int.__gt__, both, self._capacity)):
                    parts.append(_ranges(kept))
                    kept, both = [], size
                kept.append(child)
                used = both
            if kept:
                parts.append(_ranges(kept))
        return parts

    def _children(self, start: int, end: int) -> list[tuple[int, int]]:
        """The samples cut wherever they share the least, in random order."""
        inner = self._shared[start + 1 : end]
        cuts = start + 1 + np.flatnonzero(inner == inner.min())
        bounds = np.concatenate(([start], cuts, [end]))
        order = self._random.permutation(len(bounds) - 1)
        return list(zip(bounds[:-1][order].tolist(), bounds[1:][order].tolist(), strict=True))


def _ranges(found: list[tuple[int, int]]) -> NDArray[np.int64]:
    return np.concatenate([np.arange(*part) for part in sorted(found)])


def fill_rows(counts: NDArray[np.int64], samples_per_row: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Row of each sample where every row but the last holds exactly so many.

    A row starts with the largest unit that is left and is filled with the largest that fit; only where none does, one
    is cut.

    Args:
        counts: (U,) samples of each unit, none more than ``samples_per_row``.
        samples_per_row: how many.
        random: decides which units of one size share a row with which of another.

    Returns:
        (n,) the row of each sample, unit by unit; rows are in no random order.
    """
    starts = np.concatenate(([0], np.cumsum(counts)))
    stacks: list[list[tuple[int, int]]] = [[] for _ in range(samples_per_row + 1)]
    for unit in random.permutation(len(counts)).tolist():
        stacks[counts[unit]].append((int(starts[unit]), int(starts[unit + 1])))
    rows = np.empty(int(starts[-1]), np.int64)
    row, left = 0, samples_per_row
    while size := _largest(stacks, left):
        first, last = stacks[size].pop()
        taken = min(size, left)
        rows[first : first + taken] = row
        if taken < size:
            stacks[size - taken].append((first + taken, last))
        left -= taken
        if not left:
            row, left = row + 1, samples_per_row
    return rows


def _largest(stacks: Sequence[Sequence[object]], left: int) -> int:
    """Size of the largest unit of at most ``left`` samples, else of the smallest one; 0 if none is left."""
    fitting = next((size for size in range(left, 0, -1) if stacks[size]), 0)
    return fitting or next((size for size in range(left + 1, len(stacks)) if stacks[size]), 0)
