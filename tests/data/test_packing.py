"""Packing: every sample in exactly one row, no row over a budget."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from triptych.planning.packing import even_out, group, pack

rows_of_numbers = st.integers(0, 40).flatmap(lambda count: st.lists(st.integers(1, 6), min_size=count, max_size=count))


def packed(
    order: NDArray[np.int64],
    tokens: NDArray[np.int64],
    patches: NDArray[np.int64],
    token_budget: int,
    patch_budget: int,
) -> list[list[int]]:
    """The samples of each row, in the order in which they were placed."""
    row_of = pack(order, tokens, patches, token_budget, patch_budget)
    return [order[row_of == number].tolist() for number in range(row_of.max(initial=-1) + 1)]


def best_fit(
    order: list[int], tokens: list[int], patches: list[int], token_budget: int, patch_budget: int
) -> list[list[int]]:
    """The same by trying every row: fewest tokens left, then fewest patches left, then the oldest."""
    rows: list[list[int]] = []
    left: list[tuple[int, int]] = []
    for index in order:
        fitting = [
            (*both, row) for row, both in enumerate(left) if both >= (tokens[index], 0) and both[1] >= patches[index]
        ]
        if fitting:
            row = min(fitting)[2]
        else:
            row = len(rows)
            rows.append([])
            left.append((token_budget, patch_budget))
        rows[row].append(index)
        left[row] = left[row][0] - tokens[index], left[row][1] - patches[index]
    return rows


@settings(max_examples=300, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 100), st.integers(0, 400)), max_size=120),
    spare=st.tuples(st.integers(0, 200), st.integers(0, 800)),
    seed=st.integers(0, 9),
)
def test_every_sample_is_in_one_row_and_no_row_over_a_budget(
    lengths: list[tuple[int, int]], spare: tuple[int, int], seed: int
) -> None:
    tokens, patches = np.array(lengths, np.int64).reshape(-1, 2).T
    token_budget = int(tokens.max(initial=1)) + spare[0]
    patch_budget = int(patches.max(initial=0)) + spare[1]
    order = np.random.default_rng(seed).permutation(len(tokens))
    rows = packed(order, tokens, patches, token_budget, patch_budget)
    assert sorted(index for row in rows for index in row) == list(range(len(tokens)))
    assert all(rows), "no row is empty"
    for row in rows:
        assert tokens[row].sum() <= token_budget
        assert patches[row].sum() <= patch_budget
    if patches.sum() <= patch_budget and len(rows) > 1:
        # Any-fit: a row is opened only for what no open row could take.
        assert tokens.sum() > token_budget * len(rows) / 2


@settings(max_examples=300, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 90)), min_size=1, max_size=80),
    spare=st.tuples(st.integers(0, 60), st.integers(0, 120)),
)
def test_the_search_finds_what_trying_every_row_finds(lengths: list[tuple[int, int]], spare: tuple[int, int]) -> None:
    tokens, patches = np.array(lengths, np.int64).T
    budgets = int(tokens.max()) + spare[0], int(patches.max()) + spare[1]
    rows = packed(np.arange(len(tokens)), tokens, patches, *budgets)
    expected = best_fit(list(range(len(tokens))), tokens.tolist(), patches.tolist(), *budgets)
    # Which of several rows with as many tokens left is taken is free where patches do not matter.
    assert sorted(int(tokens[row].sum()) for row in rows) == sorted(int(tokens[row].sum()) for row in expected)
    row_tokens = min(budgets[0], int(tokens.sum()))
    if patches.sum() > budgets[1] and np.any(patches * row_tokens > tokens * budgets[1]):
        assert rows == expected


def test_rows_are_filled_where_patches_bind_before_tokens() -> None:
    random = np.random.default_rng(0)
    tokens = random.integers(300, 2000, 5000)
    patches = tokens * 4
    rows = packed(np.argsort(-tokens, kind="stable"), tokens, patches, 8192, 16384)
    assert patches.sum() / (16384 * len(rows)) > 0.95


def test_longest_first_fills_rows_better_than_arrival() -> None:
    tokens = np.array([5, 4, 3, 3, 1])
    assert packed(np.arange(5), tokens, np.zeros(5, np.int64), 8, 0) == [[0, 2], [1, 3, 4]]


def test_a_long_epoch_is_packed_nearly_full() -> None:
    random = np.random.default_rng(0)
    tokens, patches = random.integers(20, 2000, 5000), random.integers(0, 4000, 5000)
    rows = packed(np.argsort(-tokens, kind="stable"), tokens, patches, 8192, 32768)
    assert tokens.sum() / (8192 * len(rows)) > 0.95


def test_a_budget_far_above_the_data_costs_no_memory() -> None:
    tokens = np.array([3, 2])
    assert packed(np.arange(2), tokens, np.zeros(2, np.int64), 10**12, 10**12) == [[0, 1]]


@pytest.mark.parametrize(("tokens", "patches"), [(9, 1), (1, 9)])
def test_a_sample_larger_than_a_row_is_refused(tokens: int, patches: int) -> None:
    with pytest.raises(ValueError, match="larger than a row"):
        pack(np.arange(2), np.array([1, tokens]), np.array([1, patches]), 8, 8)


@given(count=st.integers(0, 50), per_row=st.integers(1, 9))
def test_grouped_rows_hold_a_fixed_number_in_order(count: int, per_row: int) -> None:
    rows = group(count, per_row)
    assert rows.tolist() == sorted(rows.tolist())
    held = np.bincount(rows)
    assert held.sum() == count
    assert (held[:-1] == per_row).all()
    assert ((held[-1:] >= 1) & (held[-1:] <= per_row)).all()


@given(lengths=rows_of_numbers, multiple=st.integers(1, 9))
def test_evened_rows_are_a_multiple_and_hold_the_same_samples(lengths: list[int], multiple: int) -> None:
    counts = np.array(lengths, np.int64)
    evened = even_out(counts, multiple)
    assert len(evened) % multiple == 0
    assert len(counts) <= len(evened) < len(counts) + multiple
    assert evened.sum() == counts.sum()
    assert set(np.cumsum(counts)) <= {0, *np.cumsum(evened)}, "rows are split, never joined"
    assert counts.tolist() == lengths, "the rows given are not changed"
    done = len(counts) // multiple * multiple
    assert evened[:done].tolist() == lengths[:done], "whole rounds stay as they are"
    if (evened == 0).any():
        assert (evened[done:] <= 1).all(), "a row is left empty only where none can be split"
