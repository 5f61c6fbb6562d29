"""Plan whole epochs as integers: which samples share a row, and which row comes when."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from triptych.planning.balance import balance_rows, balance_samples, group_similar
from triptych.planning.mixture import Mixture
from triptych.planning.packing import even_out, group, pack
from triptych.planning.sharing import Saved, Sharing, Units, fill_rows, make_units

JITTER = 0.1
"""Lengths are blurred by up to this share before they are sorted, so that an epoch pairs samples differently."""


MOST_ROWS = 1.05
"""How many times the rows of samples packed alone those of units may be before units are cut."""

FRACTIONS = (1, 2, 4, 8)
"""Parts of a row that units are cut to, one after the other."""


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
    ordered: bool = False
    """Whether samples come in the order of the data, in every epoch, instead of shuffled."""
    whole_steps: bool = False
    """Whether an epoch ends with a step: the last one is filled up with empty rows, and rows exchange no samples."""


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
    saved: Saved | None = None
    """What each of ``samples`` need not cost after the one before it in its row; None where nothing is shared."""

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def row(self, number: int) -> NDArray[np.int64]:
        """Sample indices of one row; empty for a row that only keeps ranks even."""
        return self.samples[self.bounds[number] : self.bounds[number + 1]]

    def first(self, rows: int) -> Plan:
        """Its first ``rows`` rows, or all if there are fewer; epochs are still those of the whole plan."""
        rows = min(rows, len(self))
        return Plan(self.samples[: self.bounds[rows]], self.bounds[: rows + 1], self.epoch_bounds)

    def sums(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """(rows,) the sum over each row's samples of (K,) values."""
        return _sums(values[self.samples], self.bounds)

    def lengths(self, lengths: Lengths) -> Lengths:
        """(rows,) tokens and patches of each row, what its samples share counted once."""
        tokens, patches = self.sums(lengths.tokens), self.sums(lengths.patches)
        if self.saved is None:
            return Lengths(tokens, patches)
        return Lengths(tokens - _sums(self.saved.tokens, self.bounds), patches - _sums(self.saved.patches, self.bounds))

    def costs(self, costs: NDArray[np.int64]) -> NDArray[np.int64]:
        """(rows,) cost of each row, of (K,) those of the samples; what they share is counted once."""
        found = self.sums(costs)
        if self.saved is None or not len(self.saved.costs):
            return found
        return found - _sums(self.saved.costs, self.bounds)

    @property
    def epochs(self) -> float:
        """Passes over the samples, the last one perhaps in part."""
        return self.epoch_of(len(self))

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
    sharing: Sharing | None = None,
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
        sharing: what the samples share; with it, those that begin alike are packed together, and stand side by side in
            their row. Rows and steps hold as many samples as without.

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
        if mixture is None or mixture.plain:
            drawn = np.arange(len(lengths.tokens))
        else:
            drawn = mixture.draw(epoch, seed, shuffle=not batch.ordered)
        steps = _steps(costs, batch, rows_per_step, int(epoch_bounds[epoch]))
        if sharing is None or batch.ordered or batch.whole_steps:
            drawn = drawn if batch.ordered else random.permutation(drawn)
            order, epoch_counts = _epoch_rows(lengths, batch, drawn, random, steps)
        else:
            order, epoch_counts = _shared_rows(lengths, batch, drawn, sharing, random, steps)
        if batch.whole_steps:
            epoch_counts = np.concatenate((epoch_counts, np.zeros(-len(epoch_counts) % rows_per_step, np.int64)))
        samples.append(order)
        counts.append(epoch_counts)
        epoch_bounds[epoch + 1] = epoch_bounds[epoch] + len(epoch_counts)
    plan = _plan(np.concatenate(samples), np.concatenate(counts), epoch_bounds, world_size)
    if sharing is not None:
        plan = replace(plan, saved=_saved(plan, lengths, costs, sharing))
    return plan if costs is None else _balanced(plan, costs, rows_per_step, world_size)


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
    plan = _plan(samples, counts, np.array([0, len(counts)]), world_size)
    return plan if costs is None else _balanced(plan, costs, one_step, world_size)


@dataclass(frozen=True, slots=True)
class _Steps:
    """What balancing the steps of an epoch takes."""

    costs: NDArray[np.int64]
    """(K,) of all samples"""
    rows_per_step: int
    first_row: int
    """Number of the epoch's first row in the run"""


def _steps(costs: NDArray[np.int64] | None, batch: BatchSpec, rows_per_step: int, first_row: int) -> _Steps | None:
    """None where samples stay in the rows in which they were drawn."""
    if costs is None or batch.ordered or batch.whole_steps:
        return None
    return _Steps(costs, rows_per_step, first_row)


def _epoch_rows(
    lengths: Lengths, batch: BatchSpec, order: NDArray[np.int64], random: np.random.Generator, steps: _Steps | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sample indices of an epoch's rows, one row after the other, and the samples of each row."""
    if batch.samples:
        if steps is not None:
            order = order[balance_samples(steps.costs[order], batch.samples, steps.rows_per_step, steps.first_row)]
        return _gather(order, group(len(order), batch.samples))
    if batch.ordered:
        return _gather(*_packed_in_order(lengths, batch, order))
    order, rows = _pack(lengths, batch, lengths.tokens * _blur(len(lengths.tokens), random), order)
    row_costs = None if steps is None else np.bincount(rows, steps.costs[order]).astype(np.int64)
    return _gather(order, _shuffled(rows, batch, row_costs, random, steps))


def _packed_in_order(
    lengths: Lengths, batch: BatchSpec, order: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Samples and the row of each: packed, the rows in the order of their first samples."""
    place = np.empty(len(lengths.tokens), np.int64)
    place[order] = np.arange(len(order))
    packed, rows = _pack(lengths, batch, lengths.tokens.astype(np.float64), order)
    first = np.full(rows.max(initial=-1) + 1, len(place), np.int64)
    np.minimum.at(first, rows, place[packed])
    return packed, np.argsort(np.argsort(first))[rows]


def _shared_rows(
    lengths: Lengths,
    batch: BatchSpec,
    drawn: NDArray[np.int64],
    sharing: Sharing,
    random: np.random.Generator,
    steps: _Steps | None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """``_epoch_rows`` with samples that begin alike in one row, in the order of ``sharing``."""
    if batch.samples:
        units = make_units(drawn, sharing, [np.ones_like(lengths.tokens)], [batch.samples], random)
        rows = random.permutation(-(-len(drawn) // batch.samples))[
            fill_rows(np.diff(units.bounds), batch.samples, random)
        ]
    else:
        units, order, packed = _packed_units(lengths, batch, drawn, sharing, random)
        row_costs = None if steps is None else np.bincount(packed, units.sums(steps.costs)[order]).astype(np.int64)
        of_unit = np.empty(len(order), np.int64)
        of_unit[order] = _shuffled(packed, batch, row_costs, random, steps)
        rows = np.repeat(of_unit, np.diff(units.bounds))
    by_place = np.argsort(units.places, kind="stable")
    return _gather(units.samples[by_place], rows[by_place])


def _packed_units(
    lengths: Lengths, batch: BatchSpec, drawn: NDArray[np.int64], sharing: Sharing, random: np.random.Generator
) -> tuple[Units, NDArray[np.int64], NDArray[np.int64]]:
    """The samples in units, (U,) the units longest first, and the row of each.

    Units that leave rows too empty are cut to halves of a row, then to quarters: a step shall hold as many samples as
    if each were packed alone.
    """
    patches = batch.patches if batch.patches is not None else int(lengths.patches[drawn].sum())
    sizes, alone = [lengths.tokens, lengths.patches], 0
    for part in FRACTIONS:
        limits = [(batch.tokens or 0) // part, patches // part if batch.patches is not None else patches]
        units = make_units(drawn, sharing, sizes, limits, random)
        own = Lengths(*(units.sums(size) for size in sizes))
        order = random.permutation(len(own.tokens))
        order, packed = _pack(own, batch, own.tokens * _blur(len(own.tokens), random), order)
        alone = alone or int(_pack(lengths, batch, lengths.tokens.astype(np.float64), drawn)[1].max(initial=0)) + 1
        if packed.max(initial=0) < alone * MOST_ROWS:
            break
    return units, order, packed


def _blur(count: int, random: np.random.Generator) -> NDArray[np.float64]:
    return random.uniform(1 - JITTER, 1 + JITTER, count)


def _shuffled(
    rows: NDArray[np.int64],
    batch: BatchSpec,
    row_costs: NDArray[np.int64] | None,
    random: np.random.Generator,
    steps: _Steps | None,
) -> NDArray[np.int64]:
    """Packed rows in the order in which they come."""
    shuffled = random.permutation(rows.max(initial=-1) + 1)
    if steps is not None and row_costs is not None and batch.group_similar:
        shuffled = shuffled[group_similar(row_costs[shuffled], steps.rows_per_step, steps.first_row, random)]
    return np.asarray(np.argsort(shuffled)[rows], np.int64)


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


def _saved(plan: Plan, lengths: Lengths, costs: NDArray[np.int64] | None, sharing: Sharing) -> Saved:
    """What each sample of the plan need not cost after the one before it in its row."""
    joined = np.ones(len(plan.samples), np.bool_)
    joined[plan.bounds[:-1][np.diff(plan.bounds) > 0]] = False
    whole = Saved(lengths.tokens, lengths.patches, np.empty(0, np.int64) if costs is None else costs)
    return sharing.within(sharing.places()[plan.samples], joined, whole)


def _balanced(plan: Plan, costs: NDArray[np.int64], rows_per_step: int, world_size: int) -> Plan:
    """The same rows, dealt to the ranks by their costs."""
    if world_size == 1:
        return plan
    order = balance_rows(plan.costs(costs), plan.epoch_bounds, rows_per_step, world_size)
    starts, counts = plan.bounds[order], np.diff(plan.bounds)[order]
    bounds = np.concatenate(([0], np.cumsum(counts)))
    places = np.repeat(starts - bounds[:-1], counts) + np.arange(len(plan.samples))
    saved = None if plan.saved is None else plan.saved.take(places)
    return Plan(plan.samples[places], bounds, plan.epoch_bounds, saved)


def _sums(values: NDArray[np.int64], bounds: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum of the values between each bound and the next, of which some may be the same."""
    running = np.concatenate(([0], np.cumsum(values)))
    sums: NDArray[np.int64] = running[bounds[1:]] - running[bounds[:-1]]
    return sums
