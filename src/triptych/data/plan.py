"""Plan whole epochs as integers: which samples share a row, and which row comes when."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triptych.data.packing import Rows, even_out, group, pack

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


def make_plan(lengths: Lengths, batch: BatchSpec, *, epochs: int, seed: int, world_size: int = 1) -> Plan:
    """Plan ``epochs`` passes over the samples, each shuffled and packed anew.

    Raises:
        ValueError: if a sample is over the budget of a row.
    """
    rows: Rows = []
    epoch_bounds = [0]
    for epoch in range(epochs):
        rows.extend(_epoch_rows(lengths, batch, np.random.default_rng((seed, epoch))))
        epoch_bounds.append(len(rows))
    rows = even_out(rows, world_size)
    epoch_bounds[-1] = len(rows)
    return _flatten(rows, epoch_bounds)


def sequential_plan(lengths: Lengths, batch: BatchSpec, *, world_size: int = 1) -> Plan:
    """One pass in a fixed order, for evaluation: no shuffling, the same packing."""
    order = np.arange(len(lengths.tokens))
    rows = (
        group(order, batch.samples)
        if batch.samples
        else _pack(lengths, batch, lengths.tokens.astype(np.float64), order)
    )
    rows = even_out(rows, world_size)
    return _flatten(rows, [0, len(rows)])


def _epoch_rows(lengths: Lengths, batch: BatchSpec, random: np.random.Generator) -> Rows:
    order = random.permutation(len(lengths.tokens))
    if batch.samples:
        return group(order, batch.samples)
    blurred = lengths.tokens * random.uniform(1 - JITTER, 1 + JITTER, len(order))
    rows = _pack(lengths, batch, blurred, order)
    return [rows[number] for number in random.permutation(len(rows))]


def _pack(lengths: Lengths, batch: BatchSpec, keys: NDArray[np.float64], order: NDArray[np.int64]) -> Rows:
    tokens = batch.tokens or 0
    patches = batch.patches if batch.patches is not None else int(lengths.patches.sum())
    # A sample is as large as the larger of its two shares of a row.
    size = np.maximum(keys / tokens, lengths.patches / max(patches, 1))
    longest_first = order[np.argsort(-size[order], kind="stable")]
    return pack(longest_first, lengths.tokens, lengths.patches, tokens, patches)


def _flatten(rows: Rows, epoch_bounds: list[int]) -> Plan:
    counts = np.array([len(row) for row in rows], np.int64)
    samples = np.fromiter((index for row in rows for index in row), np.int64, int(counts.sum()))
    return Plan(samples, np.concatenate(([0], np.cumsum(counts))), np.array(epoch_bounds, np.int64))
