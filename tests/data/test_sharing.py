"""Samples that begin alike are found, whatever they hold, and share rows that hold as many samples as without."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from triptych.planning import prefixes
from triptych.planning.plan import BatchSpec, Lengths, Plan, make_plan
from triptych.planning.prefixes import LEAST, Keys, Prefixes, find_prefixes
from triptych.planning.sharing import Sharing, lowest, make_sharing

PATCHES = 4
"""Of a token of an image"""
Samples = list[NDArray[np.int32]]


def draw(random: np.random.Generator) -> tuple[Samples, NDArray[np.int64]]:
    """Up to 40 samples over four beginnings, and the tokens of their images; some are empty, some the same."""
    stems = [random.integers(0, 100, random.integers(0, 60)) for _ in range(4)]
    drawn = []
    for _ in range(int(random.integers(1, 40))):
        stem = stems[random.integers(4)]
        images, words = -1 - random.integers(0, 3, random.integers(0, 3)), random.integers(0, 3, random.integers(0, 40))
        drawn.append(np.concatenate((stem[: random.integers(0, len(stem) + 1)], images, words)).astype(np.int32))
    return drawn, random.integers(1, 50, 3)


def read(samples: Samples, at_once: int = 7) -> Iterator[Keys]:
    for start in range(0, len(samples), at_once):
        piece = samples[start : start + at_once]
        bounds = np.cumsum([0, *(len(keys) for keys in piece)])
        yield Keys(np.arange(start, start + len(piece)), np.concatenate(piece), bounds)


def common(one: NDArray[np.int32], other: NDArray[np.int32], image_tokens: NDArray[np.int64]) -> tuple[int, int]:
    """Tokens and image tokens that two samples share at their start, counted one by one."""
    tokens = images = 0
    for left, right in zip(one.tolist(), other.tolist(), strict=False):
        if left != right:
            break
        tokens += 1 if left >= 0 else int(image_tokens[-1 - left])
        images += 0 if left >= 0 else int(image_tokens[-1 - left])
    return (tokens, images) if tokens >= LEAST else (0, 0)


@pytest.mark.parametrize("keys_at_once", [50, 10**6])
def test_any_two_samples_share_the_least_between_them(keys_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "KEYS_AT_ONCE", keys_at_once)
    shared = 0
    for seed in range(40):
        samples, image_tokens = draw(np.random.default_rng(seed))
        found = find_prefixes(lambda samples=samples: read(samples), image_tokens, len(samples))
        assert sorted(found.samples.tolist()) == list(range(len(samples))), f"seed {seed}"
        for last in range(len(samples)):
            for first in range(last):
                between = slice(first + 1, last + 1)
                expected = common(samples[found.samples[first]], samples[found.samples[last]], image_tokens)
                assert (found.tokens[between].min(), found.image_tokens[between].min()) == expected, f"seed {seed}"
                shared += expected[0] > 0
    assert shared > 100, "the samples must begin alike for this to mean something"


def test_the_lowest_of_every_range_is_found() -> None:
    values = np.random.default_rng(0).integers(0, 1000, 50)
    pairs = [(first, last) for first in range(50) for last in range(first, 50)]
    first, last = np.array(pairs).T
    assert lowest(values, first, last).tolist() == [values[a : b + 1].min() for a, b in pairs]
    assert lowest(values, np.array([3]), np.array([2])).tolist() == [0], "nothing lies between"


def groups(sizes: list[int], prefix: int = 900, own: int = 50) -> tuple[Lengths, Sharing]:
    """Groups of samples, each of which shares ``prefix`` tokens, of which half are of images, and has ``own`` more."""
    random = np.random.default_rng(0)
    count = sum(sizes)
    starts = np.cumsum([0, *sizes[:-1]])
    shared = np.full(count, prefix)
    shared[starts] = 0
    numbers = random.permutation(count)
    lengths = Lengths(np.full(count, prefix + own), np.full(count, prefix // 2 * PATCHES))
    found = Prefixes(numbers, shared, shared // 2)
    return lengths, make_sharing(found, PATCHES, shared * 10, images_only=False)


def rows(plan: Plan) -> list[list[int]]:
    return [plan.row(number).tolist() for number in range(len(plan))]


@pytest.mark.parametrize(
    "batch", [BatchSpec(samples=4), BatchSpec(samples=3), BatchSpec(tokens=4096), BatchSpec(tokens=4096, patches=6000)]
)
def test_groups_share_rows_that_hold_as_many_samples_as_without(batch: BatchSpec) -> None:
    lengths, sharing = groups([1, 2, 3, 4, 1, 2, 8, 1, 1, 5, 4, 4])
    shared = make_plan(lengths, batch, epochs=2, seed=1, sharing=sharing)
    plain = make_plan(lengths, batch, epochs=2, seed=1)
    assert sorted(shared.samples.tolist()) == sorted(plain.samples.tolist()), "every sample comes as often"
    assert abs(len(shared) - len(plain)) <= 2, "and in about as many rows"
    group = np.cumsum(sharing.prefix == 0)[sharing.places()]
    alone = together = 0
    for row in rows(shared):
        assert lengths.tokens[row].sum() <= (batch.tokens or 10**6), "the limits are those of the samples alone"
        assert lengths.patches[row].sum() <= (batch.patches or 10**6)
        numbers = group[row]
        together += len(row) - len(set(numbers))
        alone += int((np.diff(numbers) != 0).sum()) + 1 - len(set(numbers))
    assert alone == 0, "samples of one group stand side by side"
    most = sum(min(size, batch.samples or 4) - 1 for size in (2, 3, 4, 2, 5, 4, 4)) + (6 if batch.samples != 3 else 5)
    assert together >= 2 * 0.75 * most, f"{together} samples find their start computed, of {2 * most}"
    assert shared.saved is not None
    assert int(shared.saved.tokens.sum()) == 900 * together
    counted = shared.lengths(lengths)
    assert int(counted.tokens.sum()) == int(plain.lengths(lengths).tokens.sum()) - 900 * together
    assert int(counted.patches.sum()) == int(plain.lengths(lengths).patches.sum()) - 450 * PATCHES * together


def test_rows_of_a_fixed_number_hold_it_and_cut_as_little_as_they_can() -> None:
    lengths, sharing = groups([3, 1] * 20)
    plan = make_plan(lengths, BatchSpec(samples=4), epochs=1, seed=0, sharing=sharing)
    assert [len(row) for row in rows(plan)] == [4] * 20
    assert plan.saved is not None
    assert int((plan.saved.tokens > 0).sum()) == 40, "a group of three and a single sample make a row"


def test_a_group_larger_than_a_row_is_cut_where_it_shares_least() -> None:
    """One long system text over all, and four questions about each of 30 images: only the text is computed again."""
    shared = np.tile([100, 900, 900, 900], 30)
    shared[0] = 0
    lengths = Lengths(np.full(120, 950), np.full(120, 400))
    sharing = make_sharing(Prefixes(np.arange(120), shared, shared // 2), PATCHES, None, images_only=False)
    epochs = make_plan(lengths, BatchSpec(tokens=8192), epochs=2, seed=0, sharing=sharing)
    assert epochs.saved is not None
    per_epoch = len(epochs) // 2
    assert per_epoch == 15
    assert int(epochs.saved.tokens.sum()) == 2 * (30 * 3 * 900 + 15 * 100), "two images in a row share the text"
    first, second = ({frozenset(row) for row in part} for part in (rows(epochs)[:15], rows(epochs)[15:]))
    assert len(first & second) < 5, "which images share a row is drawn anew in every epoch"


def test_a_plan_is_the_same_for_the_same_seed_and_deals_what_is_shared_once() -> None:
    lengths, sharing = groups([4, 4, 1, 1, 1, 1, 4, 4, 2, 2, 8, 1, 1, 1, 4, 4] * 3)
    costs = lengths.tokens * 10
    batch = BatchSpec(tokens=4096)
    one, same = (make_plan(lengths, batch, epochs=1, seed=3, costs=costs, sharing=sharing) for _ in range(2))
    assert one.samples.tolist() == same.samples.tolist()
    two = make_plan(lengths, batch, epochs=1, seed=3, world_size=2, rows_per_step=8, costs=costs, sharing=sharing)
    assert len(two) % 2 == 0
    assert sorted(two.samples.tolist()) == sorted(one.samples.tolist())
    work = two.costs(costs)
    assert work.sum() < costs.sum(), "a shared start is work once"
    assert int(work.sum()) == int((two.lengths(lengths).tokens * 10).sum()), "and moves with its row"


def test_a_sample_that_comes_twice_in_a_row_shares_all_of_itself() -> None:
    from triptych.planning.mixture import Mixture, Share

    lengths, sharing = groups([2, 2])
    mixture = Mixture((4,), (Share(epochs=2.0),))
    plan = make_plan(lengths, BatchSpec(samples=8), epochs=1, seed=0, mixture=mixture, sharing=sharing)
    assert plan.saved is not None
    assert len(plan) == 1
    assert sorted(plan.saved.tokens.tolist()) == [0, 0, 900, 900, 950, 950, 950, 950]
