"""Packing: every sample in exactly one row, no row over a budget."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.data.packing import even_out, group, pack

rows_of_numbers = st.integers(0, 40).flatmap(lambda count: st.lists(st.integers(1, 6), min_size=count, max_size=count))


def cut(lengths: list[int]) -> list[list[int]]:
    """Rows of the given lengths, numbered through."""
    ends = np.cumsum(lengths).tolist()
    return [list(range(end - length, end)) for length, end in zip(lengths, ends, strict=True)]


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
    rows = pack(order, tokens, patches, token_budget, patch_budget)
    assert sorted(index for row in rows for index in row) == list(range(len(tokens)))
    assert all(rows), "no row is empty"
    for row in rows:
        assert tokens[row].sum() <= token_budget
        assert patches[row].sum() <= patch_budget
    if patches.sum() <= patch_budget and len(rows) > 1:
        # Any-fit: a row is opened only for what no open row could take.
        assert tokens.sum() > token_budget * len(rows) / 2


def test_longest_first_fills_rows_better_than_arrival() -> None:
    tokens = np.array([5, 4, 3, 3, 1])
    assert pack(np.arange(5), tokens, np.zeros(5, np.int64), 8, 0) == [[0, 2], [1, 3, 4]]


def test_a_long_epoch_is_packed_nearly_full() -> None:
    random = np.random.default_rng(0)
    tokens, patches = random.integers(20, 2000, 5000), random.integers(0, 4000, 5000)
    rows = pack(np.argsort(-tokens, kind="stable"), tokens, patches, 8192, 32768)
    assert tokens.sum() / (8192 * len(rows)) > 0.95


def test_a_budget_far_above_the_data_costs_no_memory() -> None:
    tokens = np.array([3, 2])
    assert pack(np.arange(2), tokens, np.zeros(2, np.int64), 10**12, 10**12) == [[0, 1]]


@pytest.mark.parametrize(("tokens", "patches"), [(9, 1), (1, 9)])
def test_a_sample_larger_than_a_row_is_refused(tokens: int, patches: int) -> None:
    with pytest.raises(ValueError, match="larger than a row"):
        pack(np.arange(2), np.array([1, tokens]), np.array([1, patches]), 8, 8)


@given(count=st.integers(0, 50), per_row=st.integers(1, 9))
def test_grouped_rows_hold_a_fixed_number_in_order(count: int, per_row: int) -> None:
    rows = group(np.arange(count)[::-1], per_row)
    assert [index for row in rows for index in row] == list(range(count))[::-1]
    assert all(len(row) == per_row for row in rows[:-1])
    assert all(1 <= len(row) <= per_row for row in rows[-1:])


@given(lengths=rows_of_numbers, multiple=st.integers(1, 9))
def test_evened_rows_are_a_multiple_and_hold_the_same_samples(lengths: list[int], multiple: int) -> None:
    rows = cut(lengths)
    evened = even_out(rows, multiple)
    assert len(evened) % multiple == 0
    assert len(rows) <= len(evened) < len(rows) + multiple
    assert [index for row in evened for index in row if row] == [index for row in rows for index in row]
    assert rows == cut(lengths), "the rows given are not changed"
    done = len(rows) // multiple * multiple
    assert evened[:done] == rows[:done], "whole rounds stay as they are"
    if any(not row for row in evened):
        assert all(len(row) <= 1 for row in evened[done:]), "a row is left empty only where none can be split"
