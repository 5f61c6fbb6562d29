"""Put samples into rows: a fixed number per row, or as many as two budgets hold. Pure functions of lengths.

Packing five samples of 5, 4, 3, 3 and 1 tokens into rows of 8 (best fit, longest first):

    5 3   |   4 3 1        two rows, full; in order it would have been 5 | 4 3 1 | 3
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = list[list[int]]

MAX_TRIED = 64
"""Rows looked at before a new one is opened; bounds the search where many rows have tokens left but no patches."""


def group(order: NDArray[np.int64], samples_per_row: int) -> Rows:
    """Rows of exactly ``samples_per_row`` samples in the given order; the last may hold fewer."""
    indices = order.tolist()
    return [indices[start : start + samples_per_row] for start in range(0, len(indices), samples_per_row)]


def pack(
    order: NDArray[np.int64],
    tokens: NDArray[np.int64],
    patches: NDArray[np.int64],
    token_budget: int,
    patch_budget: int,
) -> Rows:
    """Best-fit packing under two budgets, in the given order (give the longest first for a good fill).

    Each sample goes into the open row that its tokens fill best, among those with enough patches left; if there is
    none, it opens a row. Rows are found by remaining tokens through one big integer used as a bit set, so a sample
    costs about a microsecond whatever the number of rows.

    Args:
        order: (K,) indices of the samples to place.
        tokens: language tokens of every sample, indexed by ``order``; none over ``token_budget``.
        patches: vision patches of every sample, likewise; none over ``patch_budget``.
        token_budget: language tokens per row.
        patch_budget: vision patches per row.

    Raises:
        ValueError: if a sample is over a budget by itself.
    """
    if len(order) and (tokens[order].max() > token_budget or patches[order].max() > patch_budget):
        raise ValueError("a sample is larger than a row")
    token_budget = min(token_budget, int(tokens[order].sum()))  # a row larger than the whole holds no more
    rows: Rows = []
    patches_left: list[int] = []
    open_rows: list[list[int]] = [[] for _ in range(token_budget + 1)]  # by remaining tokens
    occupied = 0  # bit r is set while open_rows[r] is not empty
    for index, need, need_patches in zip(order.tolist(), tokens[order].tolist(), patches[order].tolist(), strict=True):
        remaining, place = _find(open_rows, occupied, patches_left, need, need_patches)
        if place < 0:
            row = len(rows)
            rows.append([])
            patches_left.append(patch_budget)
        else:
            row = open_rows[remaining].pop(place)
            if not open_rows[remaining]:
                occupied &= ~(1 << remaining)
        rows[row].append(index)
        patches_left[row] -= need_patches
        open_rows[remaining - need].append(row)
        occupied |= 1 << (remaining - need)
    return rows


def _find(
    open_rows: list[list[int]], occupied: int, patches_left: list[int], need: int, need_patches: int
) -> tuple[int, int]:
    """(remaining tokens, place among the rows with as many) of the best row; (token budget, -1) if none is found."""
    candidates = occupied >> need
    base = need
    tried = 0
    while candidates and tried < MAX_TRIED:
        step = (candidates & -candidates).bit_length() - 1
        remaining = base + step
        rows = open_rows[remaining]
        for place in range(len(rows) - 1, max(-1, len(rows) - 1 - MAX_TRIED), -1):
            if patches_left[rows[place]] >= need_patches:
                return remaining, place
        tried += len(rows)
        candidates >>= step + 1
        base = remaining + 1
    return len(open_rows) - 1, -1


def even_out(rows: Rows, multiple: int) -> Rows:
    """Split rows of the unfinished last round until their number is a multiple of ``multiple``: as many for every rank.

    Only the last ``len(rows) % multiple`` rows are touched. They belong to the last optimizer step whatever the number
    of rows in a step, so every step holds the same samples on one rank as on many. Where no row is left to split,
    empty rows fill up; a batch of one weighs nothing in the loss.
    """
    unfinished = len(rows) % multiple
    if not unfinished:
        return rows
    done, last = rows[: len(rows) - unfinished], rows[len(rows) - unfinished :]
    while len(last) < multiple:
        fullest = max(range(len(last)), key=lambda number: len(last[number]))
        if len(last[fullest]) < 2:
            last.append([])
            continue
        half = len(last[fullest]) // 2
        last[fullest : fullest + 1] = [last[fullest][:half], last[fullest][half:]]
    return done + last
