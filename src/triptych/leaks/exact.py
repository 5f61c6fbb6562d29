"""Pairs of samples that are the same, or show the same image, by their bytes and their ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from triptych.corpus.corpus import Corpus
from triptych.leaks.columns import text_sums
from triptych.leaks.contents import Contents

Kind = Literal["same-sample", "same-images", "shared-image", "near-image", "same-text"]
KINDS: dict[Kind, str] = {
    "same-sample": "the same images, question and answer",
    "same-images": "the same images with another text",
    "shared-image": "an image of the same bytes",
    "near-image": "an image that looks the same",
    "same-text": "the same question and answer with other images",
}
"""In the order in which a pair is named: the first that fits."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two samples that have something in common."""

    kind: Kind
    sample: int
    """Of the held-out split; within one split, the later one"""
    other: int
    """Of the training split, the first that has it in common"""
    image: int = -1
    """0-based number in ``sample`` of the image in common; -1 where all are, or none"""
    other_image: int = -1


@dataclass(frozen=True, slots=True)
class Leaks:
    """What two splits have in common, or what comes twice within one."""

    split: str
    """Whose samples are counted"""
    other: str
    pairs: list[Pair]
    """One for each sample and kind: a sample is named by the strongest kind, and by ``same-text`` besides"""

    def count(self, kind: Kind) -> int:
        """Samples of ``split``."""
        return sum(pair.kind == kind for pair in self.pairs)

    def as_dict(self) -> dict[str, Any]:
        """JSON form: the splits, and how many samples of each kind."""
        counts = {kind: self.count(kind) for kind in KINDS if self.count(kind)}
        return {"split": self.split, "other": self.other, "samples": counts}

    def lines(self) -> list[str]:
        """A sentence for each kind that there is."""
        lines = []
        for kind, words in KINDS.items():
            count = self.count(kind)
            if count:
                where = f"as others of {self.split}" if self.split == self.other else f"as samples of {self.other}"
                head = "duplicates" if self.split == self.other else "leak"
                some = "1 sample" if count == 1 else f"{count:,} samples"
                lines.append(f"{head}: {some} of {self.split} with {words} {where} ({kind})")
        return lines


@dataclass(frozen=True, slots=True)
class Signatures:
    """What tells the K samples of a corpus apart."""

    whole: NDArray[np.uint64]
    """(K,) of the images in order and of the text"""
    images: NDArray[np.uint64]
    """(K,) of the set of images; 0 where there is none"""
    text: NDArray[np.uint64]
    """(K,) of the text and the places of images in it"""
    contents: NDArray[np.int64]
    """The images of all samples, one after the other"""
    owners: NDArray[np.int64]
    """The sample of each of ``contents``"""


def find_leaks(corpora: Mapping[str, Corpus], contents: Contents, *, with_text: bool = True) -> list[Leaks]:
    """What the splits have in common with the first one, which is trained on, and what comes twice within the first.

    Args:
        corpora: name -> samples.
        contents: of these corpora, in this order.
        with_text: whether the corpora know ids; without, only images are compared.
    """
    names = list(corpora)
    signed = [
        _sign(corpus, *lists, with_text=with_text)
        for corpus, lists in zip(corpora.values(), contents.samples, strict=True)
    ]
    found = [Leaks(names[0], names[0], _pairs(signed[0], signed[0], within=True, with_text=with_text))]
    for name, signatures in zip(names[1:], signed[1:], strict=True):
        found.append(Leaks(name, names[0], _pairs(signatures, signed[0], within=False, with_text=with_text)))
    return found


def _sign(corpus: Corpus, contents: NDArray[np.int64], bounds: NDArray[np.int64], *, with_text: bool) -> Signatures:
    text = text_sums(corpus) if with_text else np.zeros(len(corpus), np.uint64)
    whole, images = np.zeros((2, len(corpus)), np.uint64)
    for sample, (start, end) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
        own = contents[start:end]
        whole[sample] = xxhash.xxh3_64_intdigest(own.tobytes(), seed=int(text[sample]))
        if end > start:
            images[sample] = xxhash.xxh3_64_intdigest(np.unique(own).tobytes()) or 1
    return Signatures(whole, images, text, contents, np.repeat(np.arange(len(corpus)), np.diff(bounds)))


def _pairs(found: Signatures, known: Signatures, *, within: bool, with_text: bool) -> list[Pair]:
    kinds: list[tuple[Kind, NDArray[np.uint64], NDArray[np.uint64]]] = [
        ("same-sample", found.whole, known.whole),
        ("same-images", found.images, known.images),
    ]
    named = np.zeros(len(found.whole), np.bool_)
    pairs: list[Pair] = []
    for kind, one, two in kinds:
        if kind == "same-sample" and not with_text:
            continue
        others = _first_equal(one, two, within=within)
        fresh = np.flatnonzero((others >= 0) & (one != 0) & ~named)
        named[fresh] = True
        pairs += [Pair(kind, sample, int(others[sample])) for sample in fresh.tolist()]
    pairs += _shared(found, known, named, within=within)
    if with_text:
        others = _first_equal(found.text, known.text, within=within)
        same = {pair.sample for pair in pairs if pair.kind == "same-sample"}
        pairs += [
            Pair("same-text", sample, int(others[sample]))
            for sample in np.flatnonzero(others >= 0).tolist()
            if sample not in same and found.images[sample]
        ]
    return sorted(pairs, key=lambda pair: (pair.sample, list(KINDS).index(pair.kind)))


def _first_equal(found: NDArray[np.uint64], known: NDArray[np.uint64], *, within: bool) -> NDArray[np.int64]:
    """(K,) the first of ``known`` that is equal; -1 where there is none; within one split, an earlier one."""
    values, firsts = np.unique(known, return_index=True)
    if not len(values):
        return np.full(len(found), -1)
    places = np.searchsorted(values, found).clip(max=len(values) - 1)
    others = np.where(values[places] == found, firsts[places], -1).astype(np.int64)
    return np.where(others < np.arange(len(found)), others, -1) if within else others


def _shared(found: Signatures, known: Signatures, named: NDArray[np.bool_], *, within: bool) -> list[Pair]:
    """A pair for each sample that shows an image of another sample, of those not ``named``, which becomes so."""
    values, firsts = np.unique(known.contents, return_index=True)
    pairs: list[Pair] = []
    if not len(values):
        return pairs
    starts = _starts(found.owners)
    known_starts = _starts(known.owners)
    places = np.searchsorted(values, found.contents).clip(max=len(values) - 1)
    hits = np.flatnonzero(values[places] == found.contents)
    for hit in hits.tolist():
        sample, first = int(found.owners[hit]), int(firsts[places[hit]])
        other = int(known.owners[first])
        if named[sample] or (within and other >= sample):
            continue
        named[sample] = True
        pairs.append(Pair("shared-image", sample, other, hit - starts[sample], first - known_starts[other]))
    return pairs


def _starts(owners: NDArray[np.int64]) -> dict[int, int]:
    """sample -> place of its first image."""
    samples, starts = np.unique(owners, return_index=True)
    return dict(zip(samples.tolist(), starts.tolist(), strict=True))


def groups(contents: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]], corpus: int) -> NDArray[np.int64]:
    """(K,) number of the group of each sample: samples that share an image, through others too, are in one.

    Whoever holds out samples of a set takes whole groups, so that no image is on both sides.

    Args:
        contents: ``Contents.samples``.
        corpus: number of the corpus there.
    """
    images, bounds = contents[corpus]
    parent = np.arange(len(bounds) - 1)

    def root(sample: int) -> int:
        while parent[sample] != sample:
            parent[sample] = parent[parent[sample]]
            sample = int(parent[sample])
        return sample

    first: dict[int, int] = {}
    for sample, (start, end) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
        for image in images[start:end].tolist():
            one, two = root(first.setdefault(image, sample)), root(sample)
            parent[max(one, two)] = min(one, two)
    roots = np.array([root(sample) for sample in range(len(parent))], np.int64)
    return np.unique(roots, return_inverse=True)[1].astype(np.int64)
