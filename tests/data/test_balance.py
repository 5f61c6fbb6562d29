"""Balance: ranks that wait for each other have alike to do, and every step holds the samples it would hold anyway."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from triptych.planning.balance import (
    MOST_IDLE,
    balance,
    balance_rows,
    balance_samples,
    group_similar,
    idle_share,
    split_steps,
    step_peaks,
)
from triptych.planning.plan import BatchSpec, Lengths, Plan, make_plan, sequential_plan

whole_numbers = st.integers(0, 10**6)


def costs_of(lengths: Lengths) -> NDArray[np.int64]:
    """A cost that neither tokens nor patches decide alone."""
    return 3 * lengths.tokens + lengths.patches + lengths.tokens**2 // 10_000


def drawn_lengths(samples: int, seed: int = 0, longest: int = 4000) -> Lengths:
    """Log-normal texts, some images: few samples are many times as large as most."""
    random = np.random.default_rng(seed)
    text = random.lognormal(5, 1, samples).astype(np.int64) + 10
    images = (random.lognormal(5.5, 0.8, samples) * random.integers(0, 5, samples)).astype(np.int64)
    text = np.minimum(text, longest)
    images = np.minimum(images, longest - text)
    return Lengths(text + images, 4 * images)


def step_samples(plan: Plan, rows_per_step: int) -> list[list[int]]:
    """The samples of each step, sorted."""
    places = [*range(0, len(plan), rows_per_step), len(plan)]
    return [sorted(plan.samples[plan.bounds[first] : plan.bounds[last]].tolist()) for first, last in pairwise(places)]


@st.composite
def runs(draw: st.DrawFn) -> tuple[Lengths, BatchSpec, dict[str, Any], list[int]]:
    """Samples, how rows are filled, the plan's other arguments, and the world sizes that divide a step."""
    pairs = draw(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 200)), max_size=80))
    tokens, patches = np.array(pairs, np.int64).reshape(-1, 2).T
    by_samples = draw(st.booleans())
    tokens_batch = BatchSpec(tokens=draw(st.integers(50, 120)), group_similar=draw(st.booleans()))
    batch = BatchSpec(samples=draw(st.integers(1, 4))) if by_samples else tokens_batch
    rows = draw(st.sampled_from([1, 2, 4, 6, 12]))
    lengths = Lengths(tokens, patches)
    others = {
        "epochs": draw(st.integers(1, 3)),
        "seed": draw(st.integers(0, 3)),
        "rows_per_step": rows,
        "costs": costs_of(lengths),
    }
    return lengths, batch, others, [world for world in (1, 2, 3, 4, 6, 12) if rows % world == 0]


@settings(max_examples=120, deadline=None)
@given(run=runs())
def test_every_step_holds_the_same_samples_on_one_rank_as_on_many(run: tuple[Any, ...]) -> None:
    lengths, batch, others, worlds = run
    alone = step_samples(make_plan(lengths, batch, **others), others["rows_per_step"])
    for world in worlds[1:]:
        plan = make_plan(lengths, batch, **others, world_size=world)
        assert len(plan) % world == 0
        assert step_samples(plan, others["rows_per_step"]) == alone


@settings(max_examples=120, deadline=None)
@given(run=runs())
def test_every_epoch_holds_every_sample_once_and_rows_keep_their_budgets(run: tuple[Any, ...]) -> None:
    lengths, batch, others, worlds = run
    plan = make_plan(lengths, batch, **others, world_size=worlds[-1])
    if len(plan) >= others["epochs"] * worlds[-1]:
        for first, last in pairwise(plan.epoch_bounds.tolist()):
            epoch = plan.samples[plan.bounds[first] : plan.bounds[last]]
            assert sorted(epoch.tolist()) == list(range(len(lengths.tokens)))
    for number in range(len(plan)):
        row = plan.row(number)
        assert batch.samples is None or len(row) <= batch.samples
        assert batch.tokens is None or lengths.tokens[row].sum() <= batch.tokens


@settings(max_examples=60, deadline=None)
@given(run=runs())
def test_a_balanced_plan_is_a_pure_function_of_its_inputs(run: tuple[Any, ...]) -> None:
    lengths, batch, others, worlds = run
    first = make_plan(lengths, batch, **others, world_size=worlds[-1])
    np.random.default_rng().random()
    again = {**others, "costs": others["costs"].copy()}
    second = make_plan(lengths, batch, **again, world_size=worlds[-1])
    for name in ("samples", "bounds", "epoch_bounds"):
        assert np.array_equal(getattr(first, name), getattr(second, name))


@settings(max_examples=60, deadline=None)
@given(run=runs())
def test_rows_of_a_fixed_number_of_samples_keep_that_number_and_their_step(run: tuple[Any, ...]) -> None:
    lengths, _, others, worlds = run
    batch = BatchSpec(samples=3)
    plain = make_plan(lengths, batch, **{**others, "costs": None}, world_size=worlds[-1])
    plan = make_plan(lengths, batch, **others, world_size=worlds[-1])
    rows = others["rows_per_step"]
    assert step_samples(plan, rows) == step_samples(plain, rows), "samples are as shuffled as they were"
    counts = np.diff(plan.bounds)
    assert sorted(counts.tolist()) == sorted(np.diff(plain.bounds).tolist())


@settings(max_examples=200, deadline=None)
@given(
    table=st.integers(1, 6).flatmap(
        lambda bins: st.tuples(
            st.just(bins),
            st.integers(0, 5).flatmap(
                lambda rounds: st.lists(
                    st.lists(whole_numbers, min_size=bins * rounds, max_size=bins * rounds), min_size=1, max_size=4
                )
            ),
        )
    )
)
def test_dealing_loses_nothing_and_never_fills_the_fullest_bin_more(table: tuple[int, list[list[int]]]) -> None:
    bins, steps = table
    costs = np.array(steps, np.int64).reshape(len(steps), -1)
    order = balance(costs, bins)
    assert (np.sort(order, axis=1) == np.arange(costs.shape[1])).all()
    dealt = np.take_along_axis(costs, order, 1)
    for before, after in zip(costs, dealt, strict=True):
        fullest = [max((int(row[bin_::bins].sum()) for bin_ in range(bins)), default=0) for row in (before, after)]
        assert fullest[1] <= fullest[0]


def test_dealing_is_what_the_drawn_example_says() -> None:
    assert balance(np.array([[9, 7, 4, 3]]), 2).tolist() == [[0, 1, 3, 2]]
    assert idle_share(np.array([9, 7, 4, 3]), 4, 2) == pytest.approx(3 / 26)
    assert idle_share(np.array([9, 7, 3, 4]), 4, 2) == pytest.approx(1 / 24)


@settings(max_examples=100, deadline=None)
@given(
    costs=st.lists(whole_numbers, max_size=60),
    epochs=st.lists(st.integers(0, 60), max_size=3),
    rows=st.sampled_from([2, 4, 8]),
    world=st.sampled_from([1, 2]),
)
def test_rows_stay_in_their_step_and_epoch_and_no_step_takes_longer(
    costs: list[int], epochs: list[int], rows: int, world: int
) -> None:
    values = np.array(costs[: len(costs) // world * world], np.int64)
    bounds = np.array([0, *sorted(min(bound, len(values)) for bound in epochs), len(values)])
    order = balance_rows(values, bounds, rows, world)
    places = np.arange(len(values))
    assert sorted(order.tolist()) == places.tolist()
    assert (order // rows == places // rows).all()
    epoch = np.searchsorted(bounds[1:-1], places, side="right")
    assert (epoch[order] == epoch).all()
    assert (step_peaks(values[order], rows, world) <= step_peaks(values, rows, world)).all()


@settings(max_examples=100, deadline=None)
@given(
    costs=st.lists(whole_numbers, max_size=60), per_row=st.integers(1, 4), rows=st.integers(1, 6), first=whole_numbers
)
def test_samples_stay_in_their_step(costs: list[int], per_row: int, rows: int, first: int) -> None:
    order = balance_samples(np.array(costs, np.int64), per_row, rows, first)
    assert sorted(order.tolist()) == list(range(len(costs)))
    steps = (np.arange(len(costs)) // per_row + first) // rows
    assert (steps[order] == steps).all()


@settings(max_examples=100, deadline=None)
@given(costs=st.lists(whole_numbers, max_size=80), rows=st.integers(1, 6), first=st.integers(0, 20))
def test_grouping_keeps_all_rows_and_the_ends_of_an_epoch(costs: list[int], rows: int, first: int) -> None:
    values = np.array(costs, np.int64)
    order = group_similar(values, rows, first, np.random.default_rng(0))
    assert sorted(order.tolist()) == list(range(len(costs)))
    head, steps, tail = split_steps(len(costs), rows, first)
    assert head + steps * rows + tail == len(costs)
    assert order[:head].tolist() == list(range(head))
    assert order[len(costs) - tail :].tolist() == list(range(len(costs) - tail, len(costs)))


def test_rows_that_cost_the_same_stay_as_they_were_drawn() -> None:
    costs = np.random.default_rng(0).integers(995, 1005, 600)
    assert group_similar(costs, 8, 0, np.random.default_rng(0)).tolist() == list(range(600))


def test_rows_are_grouped_only_as_far_as_needed() -> None:
    random = np.random.default_rng(0)
    costs = (1e6 * random.lognormal(0, 0.1, 64 * 100)).astype(np.int64)
    found = costs[group_similar(costs, 64, 0, random)]
    assert idle_share(found, 64, 64) < MOST_IDLE < idle_share(costs, 64, 64)
    means = found.reshape(100, 64).mean(1)
    near = np.abs(np.diff(means)).mean()
    shuffled = [np.abs(np.diff(random.permutation(means))).mean() for _ in range(1000)]
    low, high = np.quantile(shuffled, [0.005, 0.995])
    assert low < near < high, "cheap and costly steps follow each other in no order"


@pytest.mark.parametrize(("accumulated", "group_similar"), [(1, True), (2, True), (8, True), (8, False)])
@pytest.mark.parametrize("longest", [1500, 8192], ids=["short", "long-tailed"])
def test_sixty_four_ranks_are_idle_for_less_than_three_percent(
    accumulated: int, group_similar: bool, longest: int
) -> None:
    lengths = drawn_lengths(60_000, longest=longest)
    rows, costs = 64 * accumulated, costs_of(lengths)
    arguments: dict[str, Any] = {"epochs": 1, "seed": 0, "world_size": 64, "rows_per_step": rows}
    batch = BatchSpec(tokens=8192, patches=32768, group_similar=group_similar)
    balanced, drawn = (make_plan(lengths, batch, **arguments, costs=given) for given in (costs, None))
    shares = [idle_share(plan.sums(costs), rows, 64) for plan in (balanced, drawn)]
    assert shares[0] < 0.03
    assert shares[1] > 2 * shares[0]


def test_ranks_that_wait_after_every_row_wait_less_too() -> None:
    lengths = drawn_lengths(20_000)
    costs = costs_of(lengths)
    arguments: dict[str, Any] = {"epochs": 1, "seed": 0, "world_size": 8, "rows_per_step": 64}
    batch = BatchSpec(tokens=8192, patches=32768)
    shares = [
        idle_share(make_plan(lengths, batch, **arguments, costs=given).sums(costs), 8, 8) for given in (costs, None)
    ]
    assert shares[0] < shares[1] / 3


def test_samples_are_dealt_to_the_rows_of_their_step() -> None:
    lengths = drawn_lengths(20_000)
    costs = costs_of(lengths)
    arguments: dict[str, Any] = {"epochs": 1, "seed": 0, "world_size": 8, "rows_per_step": 8}
    balanced, drawn = (
        make_plan(lengths, BatchSpec(samples=8), **arguments, costs=given).sums(costs) for given in (costs, None)
    )
    assert idle_share(balanced, 8, 8) < idle_share(drawn, 8, 8) / 3
    assert (step_peaks(balanced, 8, 8) <= step_peaks(drawn, 8, 8)).all()


def test_seeds_and_epochs_change_the_balanced_order() -> None:
    lengths = drawn_lengths(2000)
    arguments: dict[str, Any] = {"world_size": 4, "rows_per_step": 8, "costs": costs_of(lengths)}
    batch = BatchSpec(tokens=8192, group_similar=True)
    plan = make_plan(lengths, batch, epochs=2, seed=0, **arguments)
    other = make_plan(lengths, batch, epochs=2, seed=1, **arguments)
    samples = len(lengths.tokens)
    assert not np.array_equal(plan.samples, other.samples)
    assert not np.array_equal(plan.samples[:samples], plan.samples[samples:])
    first = make_plan(lengths, batch, epochs=1, seed=0, **arguments)
    whole = int(plan.epoch_bounds[1]) // 8 * 8
    assert first.samples[: first.bounds[whole]].tolist() == plan.samples[: plan.bounds[whole]].tolist()


def test_one_rank_takes_rows_as_planned_for_evaluation_and_several_share_them_evenly() -> None:
    lengths = drawn_lengths(999)
    costs, batch = costs_of(lengths), BatchSpec(samples=3)
    assert sequential_plan(lengths, batch, costs=costs).samples.tolist() == list(range(999))
    shares = []
    for given_costs in (costs, None):
        plan = sequential_plan(lengths, batch, world_size=8, costs=given_costs)
        assert len(plan) % 8 == 0
        assert sorted(plan.samples.tolist()) == list(range(999))
        shares.append(idle_share(plan.sums(costs), len(plan), 8))
    assert shares[0] < shares[1] / 5
    assert len(sequential_plan(Lengths(costs[:0], costs[:0]), batch, world_size=8, costs=costs[:0])) == 0


def test_rows_of_a_step_that_do_not_divide_are_refused() -> None:
    lengths = drawn_lengths(9)
    with pytest.raises(ValueError, match="3 rows of a step do not divide among 2 ranks"):
        make_plan(
            lengths, BatchSpec(samples=1), epochs=1, seed=0, world_size=2, rows_per_step=3, costs=costs_of(lengths)
        )
