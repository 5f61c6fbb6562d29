"""The images and the texts of all samples of a corpus, as columns."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from triptych.corpus.corpus import Corpus
from triptych.corpus.lengths import STORED


def image_lists(corpus: Corpus) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The images of all K samples, as the index numbers them, and their (K + 1,) bounds."""
    index = corpus.index
    counts = np.zeros(index.sample_count, np.int64)
    lists = [np.empty(0, np.int64)]
    for start, _, first_image, (images,) in index.sample_batches("images"):
        lists.append(images.values.to_numpy() + first_image)
        counts[start : start + len(images)] = np.diff(images.offsets.to_numpy())
    good = np.zeros(len(counts), np.bool_)
    good[corpus.numbers] = True
    return np.concatenate(lists)[np.repeat(good, counts)], np.cumsum([0, *counts[good]])


def image_locations(corpus: Corpus) -> list[str]:
    """(I,) where the bytes of each image are; a file that several data files name comes several times."""
    return [location for _, locations in corpus.index.location_batches() for location in locations]


def text_sums(corpus: Corpus) -> NDArray[np.uint64]:
    """(K,) checksum of the ids, targets and places of images of each sample."""
    sums = np.zeros(corpus.index.sample_count, np.uint64)
    for start, _, _, lists in corpus.index.sample_batches(*STORED):
        sums[start : start + len(lists[0])] = _list_sums(lists)
    return sums[corpus.numbers]


def _list_sums(columns: list[Any]) -> NDArray[np.uint64]:
    """(N,) checksum of the N lists of each column of Arrow, one column after the other."""
    sums = [0] * len(columns[0])
    for column in columns:
        values, bounds = column.values.to_numpy(), column.offsets.to_numpy()
        view, ends = np.ascontiguousarray(values).data.cast("B"), (bounds * values.itemsize).tolist()
        for place, (first, last) in enumerate(pairwise(ends)):
            sums[place] = xxhash.xxh3_64_intdigest(view[first:last], seed=sums[place])
    return np.array(sums, np.uint64)
