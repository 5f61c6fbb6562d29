"""Which of the good samples a split takes: the first ones of a source, some of them, and what is held out of training.

Samples that share an image, directly or through other samples, are a group; a group is held out whole or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import PurePath
from typing import Literal, get_args

import numpy as np
import xxhash
from numpy.typing import NDArray

from triptych.corpus.corpus import Corpus
from triptych.errors import ConfigError, Origin
from triptych.run.settings import RunSettings
from triptych.run.settings.data import SourceSettings

Split = Literal["train", "eval"]
SPLITS: tuple[Split, ...] = get_args(Split)


def select(settings: RunSettings, split: Split, corpus: Corpus) -> Corpus:
    """The samples of a split.

    Args:
        settings: of the run.
        split: which.
        corpus: the good samples of ``settings.indexed(split)``.

    Raises:
        ConfigError: if ``data.hold_out`` cannot be had.
    """
    held_out = settings.data.hold_out
    sources = settings.data.eval if split == "eval" and held_out is None else settings.data.train
    kept = _of_sources(corpus.sources, sources, settings.train.seed, with_most=sources is settings.data.eval)
    if held_out is not None:
        draw = hold_out_rows if settings.data.hold_out_by == "rows" else hold_out
        chosen = draw(corpus, kept, held_out, settings.train.seed)
        kept = chosen if split == "eval" else np.setdiff1d(kept, chosen)
    return corpus if len(kept) == len(corpus) else corpus.subset(kept)


def _of_sources(
    numbers: NDArray[np.int64], sources: Sequence[SourceSettings], seed: int, *, with_most: bool
) -> NDArray[np.int64]:
    """The samples that ``first`` and, ``with_most``, ``max_samples`` of each source leave, in rising order."""
    kept = []
    for number, source in enumerate(sources):
        own = np.flatnonzero(numbers == number)[: source.first]
        if with_most and source.max_samples is not None:
            own = np.sort(np.random.default_rng((seed, number, 0)).permutation(own)[: source.max_samples])
        kept.append(own)
    return np.concatenate(kept)


def hold_out(corpus: Corpus, among: NDArray[np.int64], wanted: float, seed: int) -> NDArray[np.int64]:
    """The samples to hold out, in rising order: whole groups, in an order that the seed draws.

    A group that would be too many is left in training, so there may be fewer than wanted where groups are large.

    Args:
        corpus: the samples.
        among: those of them that take part.
        wanted: how many, or which part of them if below 1.
        seed: of the order.

    Raises:
        ConfigError: if there are not as many, or no group is small enough.
    """
    count = round(wanted * len(among)) if wanted < 1 else int(wanted)
    _check_count(count, len(among), wanted)
    groups = groups_by_image(len(corpus), *corpus.image_uses())[among]
    _, first, group, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    keys = [_drawn_key(seed, corpus.origin(int(among[place]))) for place in first]
    taken, left = np.zeros(len(sizes), np.bool_), count
    for number in np.argsort(np.array(keys, np.uint64), kind="stable").tolist():
        if sizes[number] <= left:
            taken[number] = True
            left -= int(sizes[number])
    if not taken.any():
        raise ConfigError(
            f"data.hold_out: {count:,} samples cannot be held out: the smallest group of samples that share images has "
            f"{int(sizes.min()):,}; hold out more, or give an eval source"
        )
    chosen: NDArray[np.int64] = among[taken[group]]
    return chosen


def _drawn_key(seed: int, origin: Origin) -> int:
    """The place of a group in the order that a seed draws.

    By the place in the data, not the number of the sample: another sample that is gone changes nothing. By the file's
    name without its folders: the same data draws the same samples wherever it lies.
    """
    place = f"{PurePath(origin.path).name}:{origin.line}.{origin.item}"
    return xxhash.xxh3_64_intdigest(f"{seed} {place}".encode())


def hold_out_rows(
    corpus: Corpus,  # noqa: ARG001
    among: NDArray[np.int64],
    wanted: float,
    seed: int,
) -> NDArray[np.int64]:
    """The samples to hold out, in rising order: those that ``datasets.Dataset.train_test_split`` takes by this seed.

    Arguments and errors are those of ``hold_out``.
    """
    count = math.ceil(wanted * len(among)) if wanted < 1 else int(wanted)
    _check_count(count, len(among), wanted)
    chosen: NDArray[np.int64] = np.sort(among[np.random.default_rng(seed).permutation(len(among))[:count]])
    return chosen


def _check_count(count: int, samples: int, wanted: float) -> None:
    if not 0 < count < samples:
        raise ConfigError(f"data.hold_out: {wanted:g} of {samples:,} samples leaves no sample on one of the sides")


def groups_by_image(count: int, samples: NDArray[np.int64], images: NDArray[np.int64]) -> NDArray[np.int64]:
    """(count,) the group of each sample: the lowest number of a sample that it shares images with, through others too.

    Args:
        count: samples.
        samples: (U,) sample of each use of an image.
        images: (U,) image of each use.
    """
    groups = np.arange(count)
    while True:
        lowest = np.full(int(images.max(initial=-1)) + 1, count)
        np.minimum.at(lowest, images, groups[samples])
        found = groups.copy()
        np.minimum.at(found, samples, lowest[images])
        np.minimum.at(found, groups, found)  # a group goes with its lowest member
        found = found[found]
        if np.array_equal(found, groups):
            return groups
        groups = found
