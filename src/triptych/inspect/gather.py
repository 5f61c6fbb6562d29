"""Everything that an inspection looks at: the splits of a run with their reports, and what they have in common."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from triptych.corpus.corpus import Corpus
from triptych.corpus.examine import CheckReport, Encoder
from triptych.errors import Problem
from triptych.leaks.contents import Contents
from triptych.leaks.exact import Leaks, Pair, find_leaks
from triptych.leaks.near import look, near_pairs
from triptych.run.prepare import index_sources
from triptych.run.reporter import Reporter
from triptych.run.settings import RunSettings
from triptych.sources.records import Source


@dataclass(frozen=True, slots=True)
class Gathered:
    """The data of a run, or data files read as a model would."""

    title: str
    encoder: Encoder
    corpora: dict[str, Corpus]
    """Split -> good samples, the one that is trained on first"""
    reports: dict[str, CheckReport]
    leaks: list[Leaks]
    settings: RunSettings | None = None
    """None for bare data files"""
    firsts: dict[str, int] = field(default_factory=dict)
    """Split -> number of its first sample, where the samples of all splits are counted on from 0"""

    @property
    def problems(self) -> list[Problem]:
        """Of all splits, in input order."""
        return [problem for report in self.reports.values() for problem in (*report.problems, *report.dropped)]

    def __len__(self) -> int:
        """Good samples of all splits."""
        return sum(map(len, self.corpora.values()))

    def place(self, number: int) -> tuple[str, Corpus, int]:
        """(split, its samples, number there) of the sample of this number over all splits.

        Raises:
            IndexError: if there is none.
        """
        for name, corpus in self.corpora.items():
            first = self.firsts[name]
            if first <= number < first + len(corpus):
                return name, corpus, number - first
        raise IndexError(number)

    def joined(self, columns: Mapping[str, NDArray[np.int64]]) -> NDArray[np.int64]:
        """A column of all splits, one split after the other."""
        return np.concatenate([columns[name] for name in self.corpora])


def gather(
    title: str,
    splits: Mapping[str, Sequence[Source]],
    encoder: Encoder,
    out: Reporter,
    *,
    near: bool = False,
    settings: RunSettings | None = None,
) -> Gathered:
    """Index the splits and compare them; decodes images only under ``near``.

    Raises:
        ConfigError: if a data file is missing or cannot be read.
    """
    corpora: dict[str, Corpus] = {}
    reports: dict[str, CheckReport] = {}
    firsts: dict[str, int] = {}
    for name, sources in splits.items():
        firsts[name] = sum(map(len, corpora.values()))
        corpora[name], reports[name] = index_sources(name, sources, encoder, out)
    return Gathered(title, encoder, corpora, reports, leaks_of(corpora, out, near=near), settings, firsts)


def leaks_of(
    corpora: Mapping[str, Corpus], out: Reporter, *, near: bool = False, with_text: bool = True
) -> list[Leaks]:
    """What the splits have in common with the first one, and what comes twice within it.

    Args:
        corpora: split -> samples, the one that is trained on first.
        out: who sees how far the decoding is.
        near: also compare what images look like, which decodes each once.
        with_text: whether the corpora know ids.
    """
    contents = Contents(list(corpora.values()))
    found = find_leaks(corpora, contents, with_text=with_text)
    return _with_near(found, list(corpora), contents, out) if near else found


def _with_near(found: Sequence[Leaks], names: Sequence[str], contents: Contents, out: Reporter) -> list[Leaks]:
    """Pairs by what images look like, for samples that no stronger kind names."""
    distinct = np.unique(np.concatenate([images for images, _ in contents.samples]))
    with out.bar("looking at images", len(distinct)) as advance:
        looks = look([contents.locations[number] for number in distinct.tolist()], advance, os.cpu_count() or 1)
    similar: dict[int, list[int]] = {}
    for i, j in near_pairs(looks):
        one, two = int(distinct[i]), int(distinct[j])
        similar.setdefault(one, []).append(two)
        similar.setdefault(two, []).append(one)
    first_use = _first_uses(*contents.samples[0])
    result = []
    for leaks in found:
        images, bounds = contents.samples[names.index(leaks.split)]
        named = {pair.sample for pair in leaks.pairs if pair.kind != "same-text"}
        more = []
        for sample in range(len(bounds) - 1):
            pair = None if sample in named else _near_pair(
                sample, images[bounds[sample] : bounds[sample + 1]].tolist(), similar, first_use,
                within=leaks.split == leaks.other,
            )  # fmt: skip
            more += [] if pair is None else [pair]
        result.append(Leaks(leaks.split, leaks.other, sorted([*leaks.pairs, *more], key=lambda pair: pair.sample)))
    return result


def _first_uses(images: NDArray[np.int64], bounds: NDArray[np.int64]) -> dict[int, tuple[int, int]]:
    """image -> (first sample that shows it, its place there)."""
    uses: dict[int, tuple[int, int]] = {}
    for sample, (start, end) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
        for place, image in enumerate(images[start:end].tolist()):
            uses.setdefault(image, (sample, place))
    return uses


def _near_pair(
    sample: int,
    images: Sequence[int],
    similar: Mapping[int, Sequence[int]],
    first_use: Mapping[int, tuple[int, int]],
    *,
    within: bool,
) -> Pair | None:
    for place, image in enumerate(images):
        for other in similar.get(image, ()):
            use = first_use.get(other)
            if use is not None and (not within or use[0] < sample):
                return Pair("near-image", sample, use[0], place, use[1])
    return None
