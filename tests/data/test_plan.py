"""The plan: whole epochs as integers, the same for every rank, different for every epoch."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.planning.plan import BatchSpec, Lengths, Plan, make_plan, sequential_plan


@st.composite
def cases(draw: st.DrawFn) -> tuple[Lengths, BatchSpec]:
    pairs = draw(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 200)), max_size=60))
    tokens, patches = np.array(pairs, np.int64).reshape(-1, 2).T
    lengths = Lengths(tokens, patches)
    if draw(st.booleans()):
        return lengths, BatchSpec(samples=draw(st.integers(1, 6)))
    limit = draw(st.none() | st.integers(200, 500))
    return lengths, BatchSpec(tokens=draw(st.integers(50, 150)), patches=limit)


def rows(plan: Plan) -> list[list[int]]:
    return [plan.row(number).tolist() for number in range(len(plan))]


def same(first: Plan, second: Plan) -> bool:
    return all(
        np.array_equal(getattr(first, name), getattr(second, name)) for name in ("samples", "bounds", "epoch_bounds")
    )


@settings(max_examples=150, deadline=None)
@given(case=cases(), epochs=st.integers(1, 3), seed=st.integers(0, 5), world=st.integers(1, 5))
def test_every_epoch_holds_every_sample_once_within_the_budgets(
    case: tuple[Lengths, BatchSpec], epochs: int, seed: int, world: int
) -> None:
    lengths, batch = case
    plan = make_plan(lengths, batch, epochs=epochs, seed=seed, world_size=world)
    assert len(plan) % world == 0
    everything = sorted(list(range(len(lengths.tokens))) * epochs)
    assert sorted(plan.samples.tolist()) == everything
    for row in rows(plan):
        assert batch.samples is None or len(row) <= batch.samples
        assert batch.tokens is None or lengths.tokens[row].sum() <= batch.tokens
        assert batch.patches is None or lengths.patches[row].sum() <= batch.patches
    starts = plan.epoch_bounds.tolist()
    assert starts[0] == 0
    assert starts[-1] == len(plan)
    if len(plan) >= epochs * world:  # an epoch shorter than a round of the ranks shares it with its neighbour
        for first, last in pairwise(starts):
            epoch = [index for row in rows(plan)[first:last] for index in row]
            assert sorted(epoch) == list(range(len(lengths.tokens)))


@settings(max_examples=60, deadline=None)
@given(case=cases(), epochs=st.integers(1, 3), seed=st.integers(0, 5), world=st.integers(1, 5))
def test_a_plan_is_a_pure_function_of_its_inputs(
    case: tuple[Lengths, BatchSpec], epochs: int, seed: int, world: int
) -> None:
    lengths, batch = case
    before = (lengths.tokens.copy(), lengths.patches.copy())
    first = make_plan(lengths, batch, epochs=epochs, seed=seed, world_size=world)
    np.random.default_rng().random()
    second = make_plan(Lengths(*before), batch, epochs=epochs, seed=seed, world_size=world)
    assert same(first, second)
    assert np.array_equal(lengths.tokens, before[0])


@settings(max_examples=60, deadline=None)
@given(case=cases(), seed=st.integers(0, 5), world=st.integers(1, 5))
def test_ranks_get_as_many_rows_and_share_all_of_them(case: tuple[Lengths, BatchSpec], seed: int, world: int) -> None:
    lengths, batch = case
    plan = make_plan(lengths, batch, epochs=2, seed=seed, world_size=world)
    shares = [list(range(rank, len(plan), world)) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    taken = [index for share in shares for number in share for index in plan.row(number).tolist()]
    assert sorted(taken) == sorted(plan.samples.tolist())


@pytest.mark.parametrize("batch", [BatchSpec(samples=4), BatchSpec(tokens=200, patches=800)], ids=["samples", "tokens"])
def test_the_number_of_ranks_changes_only_the_last_round(batch: BatchSpec) -> None:
    random = np.random.default_rng(0)
    lengths = Lengths(random.integers(10, 100, 61), random.integers(0, 400, 61))
    alone = rows(make_plan(lengths, batch, epochs=2, seed=1))
    for world in (2, 3, 4):
        shared = rows(make_plan(lengths, batch, epochs=2, seed=1, world_size=world))
        whole = len(alone) // world * world
        assert shared[:whole] == alone[:whole]


@pytest.mark.parametrize("batch", [BatchSpec(samples=4), BatchSpec(tokens=200)], ids=["samples", "tokens"])
def test_epochs_and_seeds_shuffle_anew(batch: BatchSpec) -> None:
    random = np.random.default_rng(0)
    lengths = Lengths(random.integers(10, 100, 60), random.integers(0, 400, 60))
    plan = make_plan(lengths, batch, epochs=3, seed=1)
    bounds = plan.epoch_bounds.tolist()
    epochs = [rows(plan)[first:last] for first, last in pairwise(bounds)]
    mates = [{frozenset(row) for row in epoch} for epoch in epochs]
    for one, two in ((0, 1), (0, 2), (1, 2)):
        assert len(mates[one] & mates[two]) < len(mates[one]) / 2, "samples meet other samples"
    assert not same(plan, make_plan(lengths, batch, epochs=3, seed=2))
    # The same first epoch, however many follow: a longer run starts like a shorter one.
    assert rows(make_plan(lengths, batch, epochs=1, seed=1)) == epochs[0]


def test_long_and_short_rows_are_mixed_through_an_epoch() -> None:
    lengths = Lengths(np.arange(1, 401), np.zeros(400, np.int64))
    plan = make_plan(lengths, BatchSpec(tokens=400), epochs=1, seed=0)
    longest = [int(lengths.tokens[row].max()) for row in rows(plan)]
    half = len(longest) // 2
    assert abs(np.mean(longest[:half]) - np.mean(longest[half:])) < 60


@settings(max_examples=100, deadline=None)
@given(case=cases(), epochs=st.integers(1, 3), world=st.integers(1, 3))
def test_the_epoch_of_a_row_grows_from_none_to_all(case: tuple[Lengths, BatchSpec], epochs: int, world: int) -> None:
    plan = make_plan(*case, epochs=epochs, seed=0, world_size=world)
    done = [plan.epoch_of(row) for row in range(len(plan) + 1)]
    assert done == sorted(done)
    if len(plan):
        assert done[0] == 0
        assert done[-1] == epochs
        assert [done[bound] for bound in plan.epoch_bounds] == list(range(epochs + 1))


@pytest.mark.parametrize("batch", [BatchSpec(samples=3), BatchSpec(tokens=100, patches=400)])
def test_a_sequential_plan_is_one_pass_that_never_changes(batch: BatchSpec) -> None:
    random = np.random.default_rng(0)
    lengths = Lengths(random.integers(10, 100, 50), random.integers(0, 400, 50))
    plan = sequential_plan(lengths, batch, world_size=4)
    assert same(plan, sequential_plan(lengths, batch, world_size=4))
    assert sorted(plan.samples.tolist()) == list(range(50))
    assert len(plan) % 4 == 0
    if batch.samples:
        assert plan.samples.tolist() == list(range(50))


def test_no_samples_give_no_rows() -> None:
    nothing = Lengths(np.array([], np.int64), np.array([], np.int64))
    for batch in (BatchSpec(samples=2), BatchSpec(tokens=10, patches=4)):
        assert len(make_plan(nothing, batch, epochs=2, seed=0, world_size=3)) == 0
        assert len(sequential_plan(nothing, batch, world_size=3)) == 0


def test_a_sample_over_the_row_is_refused() -> None:
    with pytest.raises(ValueError, match="larger than a row"):
        make_plan(Lengths(np.array([11]), np.array([0])), BatchSpec(tokens=10), epochs=1, seed=0)


@settings(max_examples=80, deadline=None)
@given(case=cases(), epochs=st.integers(1, 3), world=st.integers(1, 3), steps=st.integers(1, 4))
def test_samples_can_come_in_order_and_epochs_can_end_with_a_step(
    case: tuple[Lengths, BatchSpec], epochs: int, world: int, steps: int
) -> None:
    lengths, batch = case
    count = len(lengths.tokens)
    costs = lengths.tokens + 1
    ordered = replace(batch, ordered=True, whole_steps=True)
    rows_per_step = steps * world
    one = make_plan(lengths, ordered, epochs=epochs, seed=1, rows_per_step=rows_per_step, world_size=world)
    assert all(bound % rows_per_step == 0 for bound in one.epoch_bounds.tolist())
    for epoch in range(epochs):
        found = [one.row(number).tolist() for number in range(*one.epoch_bounds[epoch : epoch + 2].tolist())]
        assert sorted(sample for row in found for sample in row) == list(range(count))
        firsts = [min(row) for row in found if row]
        assert firsts == sorted(firsts), "rows come in the order of their first samples"
        if batch.samples:
            assert [sample for row in found for sample in row] == list(range(count))
    balanced = make_plan(lengths, ordered, epochs=epochs, seed=1, rows_per_step=rows_per_step, costs=costs)
    assert sorted(map(tuple, rows(balanced))) == sorted(map(tuple, rows(one))), "rows exchange no samples"


def test_the_first_rows_of_a_plan_are_those_of_the_whole() -> None:
    lengths = Lengths(np.full(10, 5), np.zeros(10, np.int64))
    whole = make_plan(lengths, BatchSpec(samples=2), epochs=2, seed=0)
    part = whole.first(7)
    assert rows(part) == rows(whole)[:7]
    assert part.epoch_of(7) == whole.epoch_of(7) == 1.4
    assert rows(whole.first(99)) == rows(whole)
