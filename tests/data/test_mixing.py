"""Mixing: exact counts, nothing favoured, and the same draw for the same seed."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.planning.mixture import Mixture, Share
from triptych.planning.plan import BatchSpec, Lengths, make_plan


def of_source(mixture: Mixture, drawn: Any) -> list[int]:
    """How many of the drawn samples stand in each source."""
    bounds = np.cumsum(mixture.sizes)
    return np.bincount(np.searchsorted(bounds, drawn, side="right"), minlength=len(mixture.sizes)).tolist()


@pytest.mark.parametrize(
    ("sizes", "shares", "counts"),
    [
        ((10, 20), (Share(), Share()), (10, 20)),
        ((10, 20), (Share(epochs=2), Share(epochs=0.5)), (20, 10)),
        ((10, 20), (Share(max_samples=3), Share(max_samples=50)), (3, 20)),
        ((10, 20), (Share(max_samples=4, epochs=2.5), Share()), (10, 20)),
        ((10, 20), (Share(weight=1), Share(weight=1)), (15, 15)),
        ((10, 20, 70), (Share(weight=1), Share(weight=1), Share(weight=1)), (34, 33, 33)),
        ((100, 100), (Share(weight=0.9), Share(weight=0.1)), (180, 20)),
        ((0, 20), (Share(weight=5), Share(weight=1)), (0, 20)),
    ],
)
def test_an_epoch_holds_what_the_shares_say(
    sizes: tuple[int, ...], shares: tuple[Share, ...], counts: tuple[int, ...]
) -> None:
    mixture = Mixture(sizes, shares)
    assert mixture.counts() == counts
    assert of_source(mixture, mixture.draw(3, seed=1)) == list(counts)


shares = st.builds(Share, epochs=st.floats(0.1, 3), max_samples=st.none() | st.integers(1, 30)) | st.builds(
    Share, max_samples=st.none() | st.integers(1, 30)
)
weighted = st.builds(Share, weight=st.floats(0.1, 9), max_samples=st.none() | st.integers(1, 30))
mixtures = st.lists(st.integers(1, 40), min_size=1, max_size=4).flatmap(
    lambda sizes: st.tuples(
        st.just(tuple(sizes)),
        st.lists(shares, min_size=len(sizes), max_size=len(sizes)).map(tuple)
        | st.lists(weighted, min_size=len(sizes), max_size=len(sizes)).map(tuple),
    )
)


@settings(max_examples=100, deadline=None)
@given(found=mixtures, epochs=st.integers(1, 5), seed=st.integers(0, 9))
def test_over_a_run_the_samples_of_a_source_come_equally_often(found: Any, epochs: int, seed: int) -> None:
    mixture = Mixture(*found)
    drawn = np.concatenate([mixture.draw(epoch, seed) for epoch in range(epochs)])
    assert of_source(mixture, drawn) == [count * epochs for count in mixture.counts()]
    assert np.array_equal(mixture.draw(epochs - 1, seed), mixture.draw(epochs - 1, seed))
    times = Counter(drawn.tolist())
    start = 0
    for size, pool, count in zip(mixture.sizes, mixture.pools(), mixture.counts(), strict=True):
        seen = [times[index] for index in range(start, start + size) if times[index]]
        assert len(seen) == min(pool, count * epochs)
        if seen and count * epochs >= pool:
            assert max(seen) - min(seen) <= 1
        start += size


def test_weights_deal_out_as_many_samples_as_there_are() -> None:
    mixture = Mixture((7, 11, 13), (Share(weight=0.3), Share(weight=2.2), Share(weight=1.7)))
    assert sum(mixture.counts()) == 31


def test_a_plan_holds_the_mixture_of_every_epoch() -> None:
    mixture = Mixture((10, 30), (Share(epochs=3), Share(epochs=0.5)))
    lengths = Lengths(np.full(40, 5), np.full(40, 4))
    plan = make_plan(lengths, BatchSpec(tokens=20, patches=16), epochs=2, seed=0, mixture=mixture)
    for epoch in range(2):
        first, last = plan.bounds[plan.epoch_bounds[epoch]], plan.bounds[plan.epoch_bounds[epoch + 1]]
        assert of_source(mixture, plan.samples[first:last]) == [30, 15]
    assert len(plan) == 2 * 12, "rows of four samples, full but the last of an epoch"


def test_a_plain_mixture_is_every_sample_once_in_the_order_that_no_mixture_gives() -> None:
    lengths = Lengths(np.arange(1, 31), np.zeros(30, np.int64))
    plain = Mixture((10, 20), (Share(), Share()))
    spec = BatchSpec(samples=4)
    without, with_it = (make_plan(lengths, spec, epochs=2, seed=3, mixture=item) for item in (None, plain))
    assert np.array_equal(without.samples, with_it.samples)


def test_without_shuffling_a_source_is_drawn_in_its_order() -> None:
    mixture = Mixture((5, 4), (Share(epochs=1.5), Share(max_samples=2)))
    first, second = (mixture.draw(epoch, 3, shuffle=False).tolist() for epoch in range(2))
    assert first[:8] == [0, 1, 2, 3, 4, 0, 1, 2]
    assert second[:8] == [3, 4, 0, 1, 2, 3, 4, 0]
    assert first[8:] == second[8:] == sorted(first[8:])
    assert set(first[8:]) <= {5, 6, 7, 8}
