"""Plan whole epochs as integers: which samples share a row, and which row comes when."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triptych.planning.balance import balance_rows, balance_samples, group_similar
from triptych.planning.mixture import Mixture
from triptych.planning.packing import even_out, group, pack

JITTER = 0.1
"""Lengths are blurred by up to this share before they are sorted, so that an epoch pairs samples differently."""


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
    group_similar: bool = False
    """Whether packed rows of similar cost share a step."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All rows of a run, epoch after epoch. Rank r of w takes rows r, r + w, r + 2w, ... of it.

    A pure function of lengths, costs, batch, seed, epochs, rows per step and world size: every rank computes the same
    one, their number is a multiple of ``world_size``, and the row number alone is the state of a run. An optimizer step
    may take rows from the end of one epoch and the start of the next, so that only the run's last step can be short.
    Which samples a step holds does not depend on the world size.
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

    def sums(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """(rows,) the sum over each row's samples of (K,) values."""
        return _sums(values[self.samples], self.bounds)

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
    rows_per_step: int = 1,
    costs: NDArray[np.int64] | None = None,
    mixture: Mixture | None = None,
) -> Plan:
    """Plan ``epochs`` passes over the samples, each shuffled and packed again.

    Args:
        lengths: of all samples.
        batch: how rows are filled.
        epochs: how many.
        seed: decides every order.
        world_size: ranks that share the rows.
        rows_per_step: rows of an optimizer step, over all ranks.
        costs: (K,) of all samples, in any unit. With them, the ranks of a step have about as much to do: rows are dealt
            to ranks by cost, samples to the rows of a step where their number is fixed, and packed rows of similar cost
            share a step where the batch asks for it. None: everything stays in the order in which it was drawn.
        mixture: how much of each source an epoch holds; None for every sample once.

    Raises:
        ValueError: if a sample is over the budget of a row, or costs are given and the rows of a step do not divide
            among the ranks.
    """
    if costs is not None and rows_per_step % world_size:
        raise ValueError(f"{rows_per_step} rows of a step do not divide among {world_size} ranks")
    samples, counts = [], []
    epoch_bounds = np.zeros(epochs + 1, np.int64)
    for epoch in range(epochs):
        random = np.random.default_rng((seed, epoch))
        drawn = np.arange(len(lengths.tokens)) if mixture is None or mixture.plain else mixture.draw(epoch, seed)
        steps = None if costs is None else _Steps(costs, rows_per_step, int(epoch_bounds[epoch]))
        order, epoch_counts = _epoch_rows(lengths, batch, random.permutation(drawn), random, steps)
        samples.append(order)
        counts.append(epoch_counts)
        epoch_bounds[epoch + 1] = epoch_bounds[epoch] + len(epoch_counts)
    return _plan(np.concatenate(samples), np.concatenate(counts), epoch_bounds, world_size, rows_per_step, costs)


def sequential_plan(
    lengths: Lengths, batch: BatchSpec, *, world_size: int = 1, costs: NDArray[np.int64] | None = None
) -> Plan:
    """One pass in a fixed order, for evaluation: no shuffling, the same packing.

    With ``costs`` (K,), rows are dealt to several ranks by cost; these wait for each other at the end only.
    """
    order = np.arange(len(lengths.tokens))
    if batch.samples:
        rows = group(len(order), batch.samples)
    else:
        order, rows = _pack(lengths, batch, lengths.tokens.astype(np.float64), order)
    samples, counts = _gather(order, rows)
    one_step = world_size * max(1, -(-len(counts) // world_size))
    return _plan(samples, counts, np.array([0, len(counts)]), world_size, one_step, costs)


@dataclass(frozen=True, slots=True)
class _Steps:
    """What balancing the steps of an epoch takes."""

    costs: NDArray[np.int64]
    """(K,) of all samples"""
    rows_per_step: int
    first_row: int
    """Number of the epoch's first row in the run"""


def _epoch_rows(
    lengths: Lengths, batch: BatchSpec, order: NDArray[np.int64], random: np.random.Generator, steps: _Steps | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sample indices of an epoch's rows, one row after the other, and the samples of each row."""
    if batch.samples:
        if steps is not None:
            order = order[balance_samples(steps.costs[order], batch.samples, steps.rows_per_step, steps.first_row)]
        return _gather(order, group(len(order), batch.samples))
    blurred = lengths.tokens * random.uniform(1 - JITTER, 1 + JITTER, len(lengths.tokens))
    order, rows = _pack(lengths, batch, blurred, order)
    shuffled = random.permutation(rows.max(initial=-1) + 1)
    if steps is not None and batch.group_similar:
        row_costs = np.zeros(len(shuffled), np.int64)
        np.add.at(row_costs, rows, steps.costs[order])
        shuffled = shuffled[group_similar(row_costs[shuffled], steps.rows_per_step, steps.first_row, random)]
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
    samples: NDArray[np.int64],
    counts: NDArray[np.int64],
    epoch_bounds: NDArray[np.int64],
    world_size: int,
    rows_per_step: int,
    costs: NDArray[np.int64] | None,
) -> Plan:
    counts = even_out(counts, world_size)
    epoch_bounds[-1] = len(counts)
    bounds = np.concatenate(([0], np.cumsum(counts)))
    if costs is not None and world_size > 1:
        order = balance_rows(_sums(costs[samples], bounds), epoch_bounds, rows_per_step, world_size)
        starts, counts = bounds[order], counts[order]
        bounds = np.concatenate(([0], np.cumsum(counts)))
        samples = samples[np.repeat(starts - bounds[:-1], counts) + np.arange(len(samples))]
    return Plan(samples, bounds, epoch_bounds)


def _sums(values: NDArray[np.int64], bounds: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum of the values between each bound and the next, of which some may be the same."""
    running = np.concatenate(([0], np.cumsum(values)))
    sums: NDArray[np.int64] = running[bounds[1:]] - running[bounds[:-1]]
    return sums
