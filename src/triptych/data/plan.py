"""Plan whole epochs as integers: which samples share a row, and which row comes when."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triptych.data.mixing import Mixture
from triptych.data.packing import even_out, group, pack

JITTER = 0.1
"""Lengths are blurred by up to this share before they are sorted, so that an epoch pairs samples anew."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """What packing needs to know of the K samples: integers only."""

    tokens: NDArray[np.int64]
    """(K,) language tokens"""
    patches: NDArray[np.int64]
    """(K,) vision patches"""


@dataclass(frozen=True, slots=True)
class BatchSpec:
    """How a row is filled: ``samples`` of them, or up to ``tokens`` and ``patches``."""

    samples: int | None = None
    tokens: int | None = None
    patches: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """All rows of a run, epoch after epoch. Rank r of w takes rows r, r + w, r + 2w, ... of it.

    A pure function of lengths, batch, seed, epochs and world size: every rank computes the same one, their number is
    a multiple of ``world_size``, and the row number alone is the state of a run. An optimizer step may take rows from
    the end of one epoch and the start of the next, so that only the run's last step can be short.
    """

    samples: NDArray[np.int64]
    """Sample indices of all rows, one row after the other."""
    bounds: NDArray[np.int64]
    """(rows + 1,) where each row starts in ``samples``."""
    epoch_bounds: NDArray[np.int64]
    """(epochs + 1,) the first row of each epoch."""

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def row(self, number: int) -> NDArray[np.int64]:
        """Sample indices of one row; empty for a row that only keeps ranks even."""
        return self.samples[self.bounds[number] : self.bounds[number + 1]]

    def epoch_of(self, row: int) -> float:
        """Epochs completed once ``row`` rows are done, with its fraction."""
        epoch = min(int(np.searchsorted(self.epoch_bounds, row, side="right")) - 1, len(self.epoch_bounds) - 2)
        first, last = self.epoch_bounds[epoch], self.epoch_bounds[epoch + 1]
        return float(epoch + (row - first) / max(1, last - first))


def make_plan(
    lengths: Lengths,
    batch: BatchSpec,
    *,
    epochs: int,
    seed: int,
    world_size: int = 1,
    mixture: Mixture | None = None,
) -> Plan:
    """Plan ``epochs`` passes over the samples, each shuffled and packed anew.

    Args:
        lengths: of all samples.
        batch: how rows are filled.
        epochs: how many.
        seed: decides every order.
        world_size: ranks that share the rows.
        mixture: how much of each source an epoch holds; None for every sample once.

    Raises:
        ValueError: if a sample is over the budget of a row.
    """
    samples, counts = [], []
    epoch_bounds = np.zeros(epochs + 1, np.int64)
    for epoch in range(epochs):
        random = np.random.default_rng((seed, epoch))
        drawn = np.arange(len(lengths.tokens)) if mixture is None or mixture.plain else mixture.draw(epoch, seed)
        order, epoch_counts = _epoch_rows(lengths, batch, random.permutation(drawn), random)
        samples.append(order)
        counts.append(epoch_counts)
        epoch_bounds[epoch + 1] = epoch_bounds[epoch] + len(epoch_counts)
    return _plan(np.concatenate(samples), np.concatenate(counts), epoch_bounds, world_size)


def sequential_plan(lengths: Lengths, batch: BatchSpec, *, world_size: int = 1) -> Plan:
    """One pass in a fixed order, for evaluation: no shuffling, the same packing."""
    order = np.arange(len(lengths.tokens))
    if batch.samples:
        rows = group(len(order), batch.samples)
    else:
        order, rows = _pack(lengths, batch, lengths.tokens.astype(np.float64), order)
    samples, counts = _gather(order, rows)
    return _plan(samples, counts, np.array([0, len(counts)]), world_size)


def _epoch_rows(
    lengths: Lengths, batch: BatchSpec, order: NDArray[np.int64], random: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sample indices of an epoch's rows, one row after the other, and the samples of each row."""
    if batch.samples:
        return _gather(order, group(len(order), batch.samples))
    blurred = lengths.tokens * random.uniform(1 - JITTER, 1 + JITTER, len(lengths.tokens))
    order, rows = _pack(lengths, batch, blurred, order)
    shuffled = random.permutation(rows.max(initial=-1) + 1)
    return _gather(order, np.argsort(shuffled)[rows])


def _pack(
    lengths: Lengths, batch: BatchSpec, keys: NDArray[np.float64], order: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(K,) sample indices, longest first by ``keys``, and (K,) the row of each."""
    tokens = batch.tokens or 0
    patches = batch.patches if batch.patches is not None else int(lengths.patches.sum())
    # A sample is as large as the larger of its two shares of a row.
    size = np.maximum(keys / tokens, lengths.patches / max(patches, 1))
    longest_first = order[np.argsort(-size[order], kind="stable")]
    return longest_first, pack(longest_first, lengths.tokens, lengths.patches, tokens, patches)


def _gather(order: NDArray[np.int64], rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The samples of ``order`` sorted by row, and the samples of each row."""
    return order[np.argsort(rows, kind="stable")], np.bincount(rows)


def _plan(
    samples: NDArray[np.int64], counts: NDArray[np.int64], epoch_bounds: NDArray[np.int64], world_size: int
) -> Plan:
    counts = even_out(counts, world_size)
    epoch_bounds[-1] = len(counts)
    return Plan(samples, np.concatenate(([0], np.cumsum(counts))), epoch_bounds)
