"""Build one row: samples end to end, without padding, positions that keep them apart, pixels decoded just in time.

Three samples of 2, 3 and 1 tokens; row 0 of the position ids is what keeps them from seeing each other:

    sample   a  a  b  b  b  c
    row 0    0  1  0  1  2  0
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch

from triptych.data.corpus import Corpus
from triptych.data.features import FeatureReader
from triptych.data.layout import Layout, lay_out
from triptych.data.pictures import KNOWN, RowPictures
from triptych.data.plan import Plan
from triptych.data.template import Encoded
from triptych.errors import Origin, Problem


@dataclass(frozen=True, slots=True)
class RowFeatures:
    """What is known of a row's images in a run that keeps features. L levels, F tokens, D width, M pictures."""

    known: torch.Tensor
    """(L, F, D) bfloat16: features of the images that are known, one after the other"""
    tokens: tuple[int, ...]
    """(N,) language tokens of each image"""
    pictures: tuple[int, ...]
    """(N,) which of the row's M decoded pictures an image shows, -1 (``KNOWN``) where its features are known"""
    entries: tuple[bytes | None, ...]
    """(M,) the name that a picture's features are stored under; None for one that is not stored"""

    def part(self, start: int, end: int) -> RowFeatures:
        """Of the images ``start`` to ``end``, all of which must be known."""
        first, last = sum(self.tokens[:start]), sum(self.tokens[:end])
        return RowFeatures(self.known[:, first:last], self.tokens[start:end], self.pictures[start:end], ())


@dataclass(frozen=True, slots=True)
class Batch:
    """One row of samples that cannot see each other. T tokens, S targets, P patches, N images, B samples."""

    input_ids: torch.Tensor
    """(1, T) int64"""
    position_ids: torch.Tensor
    """(4, 1, T) int64: row 0 restarts with every sample, rows 1-3 are M-RoPE temporal, height, width."""
    pixels: torch.Tensor
    """(P, 3 * p * p) uint8, neither normalised nor repeated in time; of each image, or of M pictures (``features``)"""
    image_grid_thw: torch.Tensor
    """(N, 3) int64, patches"""
    keep: torch.Tensor
    """(S,) int64 positions whose next token is a target: the only ones that need logits."""
    targets: torch.Tensor
    """(S,) int64 the tokens to predict there"""
    starts: torch.Tensor
    """(B + 1,) int32 where each sample starts, and T"""
    longest: int
    """Tokens of its longest sample"""
    images_per_sample: tuple[int, ...]
    """(B,) how many of the N images each sample holds"""
    samples: tuple[int, ...]
    """Index of each sample in the corpus; a filler has none."""
    problems: tuple[Problem, ...]
    """Samples that were planned but could not be decoded; they are not in the row."""
    features: RowFeatures | None = None
    """None in a run that keeps no features: then ``pixels`` are those of the N images."""

    @property
    def decoded(self) -> tuple[int, ...]:
        """For each picture in ``pixels`` the first of the N images that shows it."""
        if self.features is None:
            return tuple(range(len(self.image_grid_thw)))
        numbers = self.features.pictures
        return tuple(numbers.index(picture) for picture in range(len(self.features.entries)))

    @property
    def known_images(self) -> int:
        """How many of the N images need no pixels: their features were stored."""
        return 0 if self.features is None else self.features.pictures.count(KNOWN)

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Batch:
        """The same row with its tensors on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same row in page-locked memory; the data loader calls this."""
        return self._map(torch.Tensor.pin_memory)

    def alone(self) -> Iterator[Batch]:
        """Each sample of the row as a row of its own, in order: for models that cannot keep samples apart.

        Features, where the run keeps any, must all be known.
        """
        starts = self.starts.tolist()
        patches = self.image_grid_thw.prod(-1).tolist()
        image, pixel = 0, 0
        for number, (start, end) in enumerate(pairwise(starts)):
            images = self.images_per_sample[number]
            pixels = sum(patches[image : image + images]) if self.features is None else 0
            kept = (self.keep >= start) & (self.keep < end)
            yield Batch(
                input_ids=self.input_ids[:, start:end],
                position_ids=self.position_ids[..., start:end],
                pixels=self.pixels[pixel : pixel + pixels],
                image_grid_thw=self.image_grid_thw[image : image + images],
                keep=self.keep[kept] - start,
                targets=self.targets[kept],
                starts=self.starts[number : number + 2] - start,
                longest=end - start,
                images_per_sample=(images,),
                samples=self.samples[number : number + 1],  # none for a filler, which comes last
                problems=(),
                features=None if self.features is None else self.features.part(image, image + images),
            )
            image, pixel = image + images, pixel + pixels

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        values = {name: getattr(self, name) for name in self.__slots__}
        tensors = {name: function(value) for name, value in values.items() if isinstance(value, torch.Tensor)}
        features = self.features and replace(self.features, known=function(self.features.known))
        return replace(self, features=features, **tensors)  # type: ignore[arg-type]


def build_batch(
    corpus: Corpus,
    indices: Sequence[int],
    *,
    with_image: bool = False,
    filler: Encoded,
    store: FeatureReader | None = None,
) -> Batch:
    """Decode the images of the samples ``indices`` and lay them end to end.

    Args:
        corpus: the indexed samples.
        indices: which of them, in order.
        with_image: put a filler picture into a row that has none. Ranks that train the vision tower together must all
            run it; the filler is a sample of its own, so no other sample sees it, and it has no target.
        filler: the filler's ids (one picture, no target).
        store: where features are kept: what it holds is read instead of decoded, what repeats in the row is decoded
            once.

    Samples whose images fail to decode are left out and named in ``problems``. A row left without any sample holds
    the filler.
    """
    layouts: list[Layout] = []
    used: list[int] = []
    problems: list[Problem] = []
    numbers = [int(index) for index in indices]
    image_tokens = int(corpus.lengths.patches[numbers].sum()) // corpus.geometry.merge_size**2
    pictures = RowPictures(corpus.geometry, store, tokens=image_tokens)
    for index in numbers:
        failed = pictures.add(corpus.images(index), corpus.origin(index))
        if failed:
            problems.extend(failed)
            continue
        layouts.append(corpus.layout(index))
        used.append(index)
    if not layouts or (with_image and not any(len(layout.grids) for layout in layouts)):
        side = corpus.geometry.factor
        layouts.append(lay_out(filler, [(side, side)], corpus.geometry, Origin("filler", 0)))
        pictures.add_filler()
    return _join(layouts, pictures, tuple(used), tuple(problems))


def _join(
    layouts: Sequence[Layout], pictures: RowPictures, samples: tuple[int, ...], problems: tuple[Problem, ...]
) -> Batch:
    lengths = [len(layout.input_ids) for layout in layouts]
    ids = np.concatenate([layout.input_ids for layout in layouts])
    # A sample's first token is never supervised, so a target's predecessor always lies in the same sample.
    targets = np.flatnonzero(np.concatenate([layout.supervised for layout in layouts]))
    positions = np.concatenate(
        [
            np.concatenate((np.arange(length)[None], layout.position_ids))
            for length, layout in zip(lengths, layouts, strict=True)
        ],
        axis=1,
    )
    return Batch(
        input_ids=torch.from_numpy(ids)[None],
        position_ids=torch.from_numpy(positions)[:, None],
        pixels=torch.from_numpy(pictures.pixels()),
        image_grid_thw=torch.from_numpy(np.concatenate([layout.grids for layout in layouts])),
        keep=torch.from_numpy(targets - 1),
        targets=torch.from_numpy(ids[targets]),
        starts=torch.from_numpy(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)),
        longest=max(lengths),
        images_per_sample=tuple(len(layout.grids) for layout in layouts),
        samples=samples,
        problems=problems,
        features=_features(pictures),
    )


def _features(pictures: RowPictures) -> RowFeatures | None:
    if pictures.store is None:
        return None
    known = torch.from_numpy(pictures.known()).view(torch.bfloat16)
    return RowFeatures(known, tuple(pictures.tokens), tuple(pictures.numbers), tuple(pictures.entries))


class RowDataset(torch.utils.data.Dataset[Batch]):
    """Row number -> batch: what a data loader's workers call. Holds integers and a path, decodes on demand."""

    def __init__(
        self,
        corpus: Corpus,
        plan: Plan,
        filler: Encoded,
        *,
        with_image: bool = False,
        store: FeatureReader | None = None,
    ) -> None:
        self.corpus = corpus
        self.plan = plan
        self.filler = filler
        self.with_image = with_image
        self.store = store

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, row: int) -> Batch:
        samples = self.plan.row(row).tolist()
        return build_batch(self.corpus, samples, with_image=self.with_image, filler=self.filler, store=self.store)
