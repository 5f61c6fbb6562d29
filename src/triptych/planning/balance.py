"""Even out what ranks do while they wait for each other: which rows share a step, and which rank takes which.

Four rows that cost 9, 7, 4 and 3 (in any unit), two for each of two ranks. The ranks wait for the slower one:

    in order   rank 0: 9 4   rank 1: 7 3    13 and 10: idle 1 - 23 / (2 * 13) = 12%
    dealt      rank 0: 9 3   rank 1: 7 4    12 and 11: idle 1 - 23 / (2 * 12) = 4%

Costs are integers, so that every rank comes to the same order on whatever machine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MOST_IDLE = 0.015
"""Idle share up to which the rows of a step stay drawn from the whole epoch."""

WIDEST_WINDOW = 32
"""Steps whose rows may be exchanged to make each step's rows alike."""


def step_peaks(costs: NDArray[np.int64], rows_per_step: int, world_size: int) -> NDArray[np.int64]:
    """(steps,) what the rank with most to do has to do in each step; the last step may be short.

    Args:
        costs: (R,) of all rows; rank r of w takes rows r, r + w, r + 2w, ...
        rows_per_step: over all ranks; a multiple of ``world_size``. With ``world_size``, ranks that wait for each other
            after every row, as sharded ones do.
        world_size: ranks.
    """
    missing = np.zeros(-len(costs) % rows_per_step, np.int64)
    per_rank = np.concatenate((costs, missing)).reshape(-1, rows_per_step // world_size, world_size).sum(1)
    peaks: NDArray[np.int64] = per_rank.max(1)
    return peaks


def idle_share(costs: NDArray[np.int64], rows_per_step: int, world_size: int) -> float:
    """Share of all ranks' time that goes by in waiting, if time is as cost; arguments as of ``step_peaks``."""
    taken = float(step_peaks(costs, rows_per_step, world_size).sum()) * world_size
    return 1 - float(costs.sum()) / taken if taken else 0.0


def balance(costs: NDArray[np.int64], bins: int) -> NDArray[np.int64]:
    """Deal items to bins, to each as many, so that the fullest bin holds little more than the others.

    Round by round, one item for each bin, costliest items first; the costliest of a round goes to the bin that holds
    least. So the items of a round cost about the same, too. Where the order given was better, it stays.

    Args:
        costs: (S, n) of the items of S separate steps; n is a multiple of ``bins``. Place p stands for bin p modulo
            ``bins``.
        bins: how many.

    Returns:
        (S, n) which item comes to each place.
    """
    steps, items = costs.shape
    given = np.broadcast_to(np.arange(items), (steps, items))
    if bins == 1 or items <= bins:
        return given
    falling = np.argsort(-costs, axis=1, kind="stable")
    held = np.zeros((steps, bins), np.int64)
    dealt = np.empty_like(falling)
    for start in range(0, items, bins):
        of_round = slice(start, start + bins)
        np.put_along_axis(dealt[:, of_round], np.argsort(held, 1, kind="stable"), falling[:, of_round], 1)
        held += np.take_along_axis(costs, dealt[:, of_round], 1)
    better = held.max(1) < costs.reshape(steps, items // bins, bins).sum(1).max(1)
    return np.where(better[:, None], dealt, given)


def balance_rows(
    costs: NDArray[np.int64], epoch_bounds: NDArray[np.int64], rows_per_step: int, world_size: int
) -> NDArray[np.int64]:
    """Exchange rows within their step so that the ranks have alike to do.

    The step's samples stay the same, and so does its gradient, but for the order of summation. A step that holds rows
    of two epochs keeps its order, so that each epoch's rows stay together.

    Args:
        costs: (R,) of all rows; R is a multiple of ``world_size``.
        epoch_bounds: (epochs + 1,) first row of each epoch.
        rows_per_step: over all ranks; a multiple of ``world_size``.
        world_size: ranks.

    Returns:
        (R,) which row comes to each place.
    """
    order = np.arange(len(costs))
    steps, rest = divmod(len(costs), rows_per_step)
    inner = epoch_bounds[(epoch_bounds % rows_per_step > 0) & (epoch_bounds < len(costs))]
    mixed = inner // rows_per_step
    whole = np.setdiff1d(np.arange(steps), mixed)
    places = whole[:, None] * rows_per_step + np.arange(rows_per_step)
    order[places] = np.take_along_axis(places, balance(costs[places], world_size), 1)
    if rest and steps not in mixed:
        order[-rest:] = len(costs) - rest + balance(costs[None, -rest:], world_size)[0]
    return order


def balance_samples(
    costs: NDArray[np.int64], samples_per_row: int, rows_per_step: int, first_row: int
) -> NDArray[np.int64]:
    """Exchange samples within their step so that its rows cost alike, each with as many samples as before.

    Args:
        costs: (K,) of an epoch's samples in their order, ``samples_per_row`` to a row.
        samples_per_row: how many; a last row with fewer stays as it is.
        rows_per_step: over all ranks.
        first_row: number of the epoch's first row in the run. Where it starts within a step, its rows there exchange
            samples among themselves; so do those of its last step.

    Returns:
        (K,) which sample comes to each place.
    """
    order = np.arange(len(costs))
    rows = len(costs) // samples_per_row
    head, steps, tail = split_steps(rows, rows_per_step, first_row)
    for first, blocks, bins in ((0, 1, head), (head, steps, rows_per_step), (rows - tail, 1, tail)):
        if blocks and bins:
            places = np.arange(blocks * bins * samples_per_row).reshape(blocks, bins, -1) + first * samples_per_row
            in_rounds = places.transpose(0, 2, 1).reshape(blocks, -1)
            dealt = np.take_along_axis(in_rounds, balance(costs[in_rounds], bins), 1)
            order[places] = dealt.reshape(blocks, -1, bins).transpose(0, 2, 1)
    return order


def group_similar(
    costs: NDArray[np.int64], rows_per_step: int, first_row: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """Let rows that cost alike share a step, as far as ranks with one row each would wait for each other otherwise.

    The rows of some consecutive steps are sorted by cost and cut into steps again: of as few steps as bring the idle
    share under ``MOST_IDLE``, and of ``WIDEST_WINDOW`` at most. With one, nothing is changed. The number of ranks plays
    no part: a step holds the same samples on one as on many.

    Args:
        costs: (R,) of an epoch's rows, shuffled.
        rows_per_step: over all ranks.
        first_row: number of the epoch's first row in the run; rows of steps that the epoch has in part stay.
        random: shuffles the steps.

    Returns:
        (R,) which row comes to each place.
    """
    order = np.arange(len(costs))
    head, steps, _ = split_steps(len(costs), rows_per_step, first_row)
    within = slice(head, head + steps * rows_per_step)
    whole, window = costs[within], 1
    found = np.arange(len(whole))
    while idle_share(whole[found], rows_per_step, rows_per_step) > MOST_IDLE and window < min(WIDEST_WINDOW, steps):
        window *= 2
        windows = max(1, steps // window)
        found = np.lexsort((whole, np.repeat(np.arange(steps) * windows // steps, rows_per_step)))
    if window > 1:
        shuffled = random.permutation(found.reshape(steps, rows_per_step))
        order[within] = head + shuffled.ravel()
    return order


def split_steps(rows: int, rows_per_step: int, first_row: int) -> tuple[int, int, int]:
    """Of the rows of an epoch: those that end a step begun before it, its whole steps, and the rows of the next one."""
    head = min(-first_row % rows_per_step, rows)
    steps, tail = divmod(rows - head, rows_per_step)
    return head, steps, tail
