"""What the data is like in numbers: totals, histograms, and what the limits do to images; nothing is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych.corpus.corpus import Corpus
from triptych.inspect.gather import Gathered
from triptych.leaks.columns import image_lists

BINS = 24
SKEWED = 20
"""Where the largest value is so many times the median, bins grow."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Numbers of all K samples of all splits."""

    images: NDArray[np.int64]
    tokens: NDArray[np.int64]
    image_share: NDArray[np.int64]
    """Tokens of images, % of all"""
    supervised: NDArray[np.int64]
    """Trained tokens"""
    kept: NDArray[np.int64]
    """Area of the images in the model, % of that in their files; 100 where there is none"""
    budget: NDArray[np.int64]
    """Tokens of images, % of what they would cost without a budget of the sample"""


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many samples lie between two edges each."""

    title: str
    unit: str
    edges: list[int]
    """n + 1; the last one belongs to the last bin"""
    counts: list[int]
    median: float

    def as_dict(self) -> dict[str, Any]:
        """For a page."""
        return {"title": self.title, "unit": self.unit, "edges": self.edges, "counts": self.counts, "whole": True}


def columns(gathered: Gathered) -> Columns:
    """Numbers of all samples, in the order of the splits."""
    parts = [_columns(corpus, gathered.encoder.geometry.merge_size) for corpus in gathered.corpora.values()]
    return Columns(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _columns(corpus: Corpus, merge: int) -> tuple[NDArray[np.int64], ...]:
    tokens, patches = corpus.lengths.tokens, corpus.lengths.patches
    numbers, bounds = image_lists(corpus)
    sizes = corpus.image_sizes()
    stored = _sums(sizes.prod(axis=1)[numbers], bounds)
    natural = _sums((corpus.natural_patches() // merge**2)[numbers], bounds)
    image_tokens = patches // merge**2
    area = patches * corpus.geometry.patch_size**2
    kept = np.where(stored > 0, 100 * area // np.maximum(stored, 1), 100)
    budget = np.where(natural > 0, 100 * image_tokens // np.maximum(natural, 1), 100)
    share = 100 * image_tokens // np.maximum(tokens, 1)
    return corpus.image_counts, tokens, share, corpus.supervised, kept, budget


def _sums(values: NDArray[np.int64], bounds: NDArray[np.int64]) -> NDArray[np.int64]:
    totals = np.concatenate(([0], np.cumsum(values)))
    return np.asarray(totals[bounds[1:]] - totals[bounds[:-1]], np.int64)


def histograms(found: Columns) -> list[Histogram]:
    """Images, tokens, share of images and trained tokens per sample."""
    wanted = (
        ("images", "images", found.images),
        ("tokens", "tokens", found.tokens),
        ("image share", "% of the tokens", found.image_share),
        ("trained", "tokens", found.supervised),
    )
    return [_histogram(title, unit, values) for title, unit, values in wanted if len(values)]


def _histogram(title: str, unit: str, values: NDArray[np.int64]) -> Histogram:
    low, high, median = int(values.min()), int(values.max()), float(np.median(values))
    if high - low < BINS:
        edges = np.arange(low, high + 2)
    elif high > SKEWED * max(median, 1):
        edges = np.unique(np.geomspace(max(low, 1), high + 1, BINS + 1).round().astype(np.int64))
        edges[0] = low
    else:
        edges = np.unique(np.linspace(low, high + 1, BINS + 1).round().astype(np.int64))
    counts, _ = np.histogram(values, edges)
    return Histogram(title, unit, edges.tolist(), counts.tolist(), median)


def totals(gathered: Gathered, found: Columns) -> dict[str, Any]:
    """What there is, for each split and in all."""
    splits = {}
    for name, corpus in gathered.corpora.items():
        report = gathered.reports[name]
        splits[name] = {
            "records": report.samples,
            "ok": report.ok,
            "problems": len(report.problems),
            "dropped": len(report.dropped),
            "shrunk": report.shrunk,
            "images": int(corpus.image_counts.sum()),
            "tokens": int(corpus.lengths.tokens.sum()),
            "supervised": int(corpus.supervised.sum()),
        }
    image_tokens = int((found.tokens * found.image_share / 100).sum())
    everything = {key: sum(item[key] for item in splits.values()) for key in next(iter(splits.values()))}
    return {"splits": splits, "all": everything | {"image_tokens": image_tokens}}
