"""Put samples into rows: a fixed number per row, or as many as two budgets hold. Pure functions of lengths.

Packing five samples of 5, 4, 3, 3 and 1 tokens into rows of 8 (best fit, longest first):

    5 3   |   4 3 1        two rows, full; in order it would have been 5 | 4 3 1 | 3
"""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np
from numpy.typing import NDArray


def group(samples: int, samples_per_row: int) -> NDArray[np.int64]:
    """Row number of each of ``samples`` samples, ``samples_per_row`` to a row; the last row may hold fewer."""
    return np.arange(samples) // samples_per_row


def pack(
    order: NDArray[np.int64],
    tokens: NDArray[np.int64],
    patches: NDArray[np.int64],
    token_budget: int,
    patch_budget: int,
) -> NDArray[np.int64]:
    """Best-fit packing under two budgets, in the given order (give the longest first for a good fill).

    Each sample goes into the open row that its tokens fill best, among those with enough patches left; if there is
    none, it opens a row. The search is exact, and costs microseconds whatever the number of rows.

    Args:
        order: (K,) indices of the samples to place.
        tokens: language tokens of every sample, indexed by ``order``; none over ``token_budget``.
        patches: vision patches of every sample, likewise; none over ``patch_budget``.
        token_budget: language tokens per row.
        patch_budget: vision patches per row.

    Returns:
        (K,) the row of each sample of ``order``; rows are numbered as they are opened.

    Raises:
        ValueError: if a sample is over a budget by itself.
    """
    tokens, patches = tokens[order], patches[order]
    if len(order) and (tokens.max() > token_budget or patches.max() > patch_budget):
        raise ValueError("a sample is larger than a row")
    token_budget = min(token_budget, int(tokens.sum()))  # a row larger than the whole holds no more
    # Where every sample has at most patch_budget / token_budget patches per token, so has every set of samples: a row
    # with tokens enough has patches enough. So it is on Qwen-VL with four patches or more in the budget per token.
    patches_never_bind = patch_budget >= patches.sum() or bool(np.all(patches * token_budget <= tokens * patch_budget))
    if patches_never_bind:
        by_tokens = _RowsByTokens(token_budget)
        rows = [by_tokens.place(need) for need in tokens.tolist()]
    else:
        by_both = _RowsByTokensAndPatches(token_budget, patch_budget)
        rows = [by_both.place(*needs) for needs in zip(tokens.tolist(), patches.tolist(), strict=True)]
    return np.array(rows, np.int64)


class _RowsByTokens:
    """Open rows by remaining tokens, found through one big integer used as a bit set."""

    def __init__(self, token_budget: int) -> None:
        self._token_budget = token_budget
        self._rows: dict[int, list[int]] = {}  # by remaining tokens, never empty
        self._occupied = 0  # bit r is set while a row has r tokens left
        self._opened = 0

    def place(self, need: int) -> int:
        """Put a sample of ``need`` tokens into the fullest row that holds it, else into a new one; its number."""
        candidates = self._occupied >> need
        if candidates:
            remaining = need + (candidates & -candidates).bit_length() - 1
            rows = self._rows[remaining]
            row = rows.pop()
            if not rows:
                del self._rows[remaining]
                self._occupied ^= 1 << remaining
        else:
            remaining, row = self._token_budget, self._opened
            self._opened += 1
        remaining -= need
        if remaining in self._rows:
            self._rows[remaining].append(row)
        else:
            self._rows[remaining] = [row]
            self._occupied ^= 1 << remaining
        return row


class _RowsByTokensAndPatches:
    """Open rows by remaining tokens, found through a tree that knows the most patches left below each of its nodes.

    Leaf ``leaves + r`` stands for the rows with r tokens left, and node n for its children 2n and 2n + 1:

        node 1:  9              tokens left   0   1   2   3
             2:  4    3:  9     most patches  4  -1   9   2      (-1: no row)
             4:  4  -1   9   2
    """

    def __init__(self, token_budget: int, patch_budget: int) -> None:
        self._budgets = token_budget, patch_budget
        self._leaves = 1 << token_budget.bit_length()
        self._most = [-1] * (2 * self._leaves)
        self._rows: dict[int, list[tuple[int, int]]] = {}  # by remaining tokens: (patches left, row), rising
        self._opened = 0

    def place(self, need: int, need_patches: int) -> int:
        """Put a sample into the fullest row that holds it, of equals the one with fewest patches left; its number."""
        leaf = self._find(need, need_patches)
        if leaf:
            remaining = leaf - self._leaves
            rows = self._rows[remaining]
            patches_left, row = rows.pop(bisect_left(rows, (need_patches, 0)))
            self._lower(leaf, rows[-1][0] if rows else -1)
        else:
            remaining, patches_left = self._budgets
            row = self._opened
            self._opened += 1
        remaining -= need
        patches_left -= need_patches
        insort(self._rows.setdefault(remaining, []), (patches_left, row))
        self._raise(self._leaves + remaining, patches_left)
        return row

    def _find(self, need: int, need_patches: int) -> int:
        """The first leaf with tokens and patches enough; 0 if there is none."""
        most, node = self._most, self._leaves + need
        while most[node] < need_patches:
            while node & 1:  # a right child: what follows it is right of its parent
                node >>= 1
            if not node:
                return 0
            node += 1
        while node < self._leaves:
            node *= 2
            node += most[node] < need_patches
        return node

    def _raise(self, node: int, value: int) -> None:
        most = self._most
        while node and most[node] < value:
            most[node] = value
            node >>= 1

    def _lower(self, node: int, value: int) -> None:
        most = self._most
        while node and most[node] != value:
            most[node] = value
            value = max(value, most[node ^ 1])
            node >>= 1


def even_out(counts: NDArray[np.int64], multiple: int) -> NDArray[np.int64]:
    """Split rows of the unfinished last round until their number is a multiple of ``multiple``: as many for every rank.

    Only the last ``len(counts) % multiple`` rows are touched. They belong to the last optimizer step whatever the
    number of rows in a step, so every step holds the same samples on one rank as on many. Where no row is left to
    split, empty rows fill up; a batch of one weighs nothing in the loss.

    Args:
        counts: (R,) samples of each row.
        multiple: what the number of rows shall be a multiple of.

    Returns:
        Samples of each row, the split ones side by side: the order of samples stays as it is.
    """
    unfinished = len(counts) % multiple
    if not unfinished:
        return counts
    done, last = counts[: len(counts) - unfinished], counts[len(counts) - unfinished :].tolist()
    while len(last) < multiple:
        fullest = max(range(len(last)), key=last.__getitem__)
        if last[fullest] < 2:
            last.append(0)
            continue
        half = last[fullest] // 2
        last[fullest : fullest + 1] = [half, last[fullest] - half]
    return np.concatenate((done, np.array(last, np.int64)))
