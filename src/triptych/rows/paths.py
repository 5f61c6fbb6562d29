"""A row that holds once what its samples share at their start: which tokens each sample is made of.

Three samples that share ``a b c``, two of them ``d`` too. The row holds each shared token once, at the place of the
sample that comes first; a sample is a path through it:

    samples   a b c d e     a b c d f g     a b c x
    row       a b c d e f g x               8 tokens instead of 15
    paths     0 1 2 3 4     0 1 2 3 5 6     0 1 2 7

A token sees those before it on its sample's path. So each sample is what it is alone: its ids, its positions, its
targets. A shared target stands among the row's targets once for every sample that holds it, with its weight there; it
is computed once, with the sum of these weights. The last shared token may predict several.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from triptych.planning.prefixes import LEAST
from triptych.rows.row_images import ImageKey
from triptych.text.layout import Layout


@dataclass(frozen=True, slots=True)
class Paths:
    """How the B samples of a row of T tokens and S targets are made of them."""

    tokens: NDArray[np.int64]
    """Places in the row of the tokens of each sample, one sample after the other"""
    lengths: tuple[int, ...]
    """(B,) tokens of each sample"""
    own: tuple[int, ...]
    """(B,) how many of them, at its end, no sample before it holds"""
    kept: NDArray[np.int64]
    """(S,) for each target the token of its sample that predicts it, counted within the sample"""
    target_counts: tuple[int, ...]
    """(B,) targets of each sample"""
    images: tuple[tuple[int, ...], ...]
    """(B,) which of the row's N images each sample shows"""


@dataclass(slots=True)
class PathBuilder:
    """Takes in the samples of a row one by one; each may share a start with the one before it."""

    image_pad: int
    """Id of the tokens of an image"""
    shares: bool = True
    """Whether samples may share a start; else each is as it would be alone"""
    layouts: list[Layout] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    """Tokens that each sample shares with the one before"""
    paths: list[NDArray[np.int64]] = field(default_factory=list)
    images: list[tuple[int, ...]] = field(default_factory=list)
    own_images: list[int] = field(default_factory=list)
    """Images of each sample that the row did not hold before"""
    _keys: tuple[ImageKey, ...] = ()
    _tokens: int = 0
    _images: int = 0

    def add(self, layout: Layout, keys: tuple[ImageKey, ...]) -> int:
        """Take in a sample; no image is shared in part.

        Args:
            layout: of the sample.
            keys: of its images.

        Returns:
            How many of its images, from the first, the row holds already.
        """
        shared = self._shared(layout, keys) if self.shares and self.layouts else 0
        known = int((_image_starts(layout, self.image_pad) < shared).sum()) if shared else 0
        own = np.arange(self._tokens, self._tokens + len(layout.input_ids) - shared)
        before = self.paths[-1][:shared] if shared else own[:0]
        new = range(self._images, self._images + len(layout.grids) - known)
        self.images.append((*(self.images[-1][:known] if known else ()), *new))
        self.paths.append(np.concatenate((before, own)))
        self.layouts.append(layout)
        self.starts.append(shared)
        self.own_images.append(len(new))
        self._keys = keys
        self._tokens += len(own)
        self._images += len(new)
        return known

    def _shared(self, layout: Layout, keys: tuple[ImageKey, ...]) -> int:
        """Tokens that a sample shares with the last one; no image in part."""
        last = self.layouts[-1]
        most = min(len(last.input_ids), len(layout.input_ids))
        differs = last.input_ids[:most] != layout.input_ids[:most]
        shared = int(differs.argmax()) if differs.any() else most
        same = next((n for n, pair in enumerate(zip(keys, self._keys, strict=False)) if pair[0] != pair[1]), None)
        same = min(len(keys), len(self._keys)) if same is None else same
        if same < len(keys):
            shared = min(shared, int(_image_starts(layout, self.image_pad)[same]))
        if same < len(self._keys):
            shared = min(shared, int(_image_starts(last, self.image_pad)[same]))
        return shared if shared >= LEAST else 0

    def finish(self) -> Paths:
        """How the samples are made of the row's tokens."""
        kept = [np.flatnonzero(layout.weights) - 1 for layout in self.layouts]
        lengths = tuple(map(len, self.paths))
        return Paths(
            tokens=np.concatenate(self.paths),
            lengths=lengths,
            own=tuple(length - start for length, start in zip(lengths, self.starts, strict=True)),
            kept=np.concatenate(kept).astype(np.int64),
            target_counts=tuple(map(len, kept)),
            images=tuple(self.images),
        )


@dataclass(frozen=True, slots=True)
class DistinctTargets:
    """The S targets of a row without repetition: D pairs of a token that predicts and what it predicts."""

    logits_to_keep: NDArray[np.int64]
    """(D,) places in the row of what predicts"""
    targets: NDArray[np.int64]
    """(D,) the tokens to predict there"""
    numbers: NDArray[np.int64]
    """(S,) which of the D each target is"""


def distinct_targets(logits_to_keep: NDArray[np.int64], targets: NDArray[np.int64]) -> DistinctTargets | None:
    """Of (S,) targets and the places that predict them; None where none comes twice."""
    pairs, numbers = np.unique(logits_to_keep << 32 | targets, return_inverse=True)
    if len(pairs) == len(targets):
        return None
    return DistinctTargets(pairs >> 32, pairs & 0xFFFFFFFF, numbers.astype(np.int64))


def _image_tokens(layout: Layout, image_pad: int) -> NDArray[np.int64]:
    """(N,) tokens of each image of a sample."""
    patches = layout.grids.prod(1)
    pads = int((layout.input_ids == image_pad).sum())
    return np.asarray(patches // max(1, int(patches.sum()) // max(1, pads)), np.int64)


def _image_starts(layout: Layout, image_pad: int) -> NDArray[np.int64]:
    """(N,) the first token of each image of a sample."""
    places, counts = np.flatnonzero(layout.input_ids == image_pad), _image_tokens(layout, image_pad)
    return np.asarray(places[np.cumsum(counts) - counts], np.int64)
