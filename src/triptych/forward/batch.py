"""A row as tensors, and the rows of a plan as a data set that decodes them ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from triptych.corpus.corpus import Corpus
from triptych.errors import Origin, Problem
from triptych.images.pixels import Decode
from triptych.planning.plan import Plan
from triptych.rows.builder import KnownFeatures, Row, RowBuilder
from triptych.rows.feature_store import FeatureReader
from triptych.rows.loader import Loading, RowLoader
from triptych.rows.row_images import KNOWN
from triptych.text.template import Encoded


@dataclass(frozen=True, slots=True)
class RowFeatures:
    """What is known of a row's images in a run that keeps features. L levels, F tokens, D width, M decoded images."""

    known: torch.Tensor
    """(L, F, D) bfloat16: features of the images that are known, one after the other"""
    tokens: tuple[int, ...]
    """(N,) language tokens of each image"""
    images: tuple[int, ...]
    """(N,) which of the row's M decoded images an image shows, -1 (``KNOWN``) where its features are known"""
    entries: tuple[bytes | None, ...]
    """(M,) the name that a decoded image's features are stored under; None for one that is not stored"""

    def part(self, start: int, end: int) -> RowFeatures:
        """Of the images ``start`` to ``end``, all of which must be known."""
        first, last = sum(self.tokens[:start]), sum(self.tokens[:end])
        return RowFeatures(self.known[:, first:last], self.tokens[start:end], self.images[start:end], ())


@dataclass(frozen=True, slots=True)
class Batch:
    """One row of samples that cannot see each other. T tokens, S targets, P patches, N images, B samples."""

    input_ids: torch.Tensor
    """(1, T) int64"""
    position_ids: torch.Tensor
    """(4, 1, T) int64: row 0 restarts with every sample, rows 1-3 are M-RoPE temporal, height, width."""
    pixels: torch.Tensor
    """(P, 3 * p * p) uint8, neither normalised nor repeated in time; of each image, or of the M decoded ones"""
    image_grid_thw: torch.Tensor
    """(N, 3) int64, patches"""
    logits_to_keep: torch.Tensor
    """(S,) int64 positions whose next token is a target: the only ones that need logits."""
    targets: torch.Tensor
    """(S,) int64 the tokens to predict there"""
    weights: torch.Tensor
    """(S,) float32 how much each counts in the loss"""
    cu_seqlens: torch.Tensor
    """(B + 1,) int32 where each sample starts, and T"""
    max_seqlen: int
    """Tokens of its longest sample"""
    images_per_sample: tuple[int, ...]
    """(B,) how many of the N images each sample holds"""
    samples: tuple[int, ...]
    """Index of each sample in the corpus; a filler has none."""
    problems: tuple[Problem, ...]
    """Samples that were planned but could not be decoded; they are not in the row."""
    features: RowFeatures | None = None
    """None in a run that keeps no features: then ``pixels`` are those of the N images."""

    def sample_of_target(self) -> torch.Tensor:
        """(S,) int64 which of the row's B samples each target belongs to."""
        return torch.searchsorted(self.cu_seqlens[1:].to(self.logits_to_keep.dtype), self.logits_to_keep, right=True)

    @property
    def decoded(self) -> tuple[int, ...]:
        """For each image in ``pixels`` the first of the N images that shows it."""
        if self.features is None:
            return tuple(range(len(self.image_grid_thw)))
        numbers = self.features.images
        return tuple(numbers.index(image) for image in range(len(self.features.entries)))

    @property
    def known_images(self) -> int:
        """How many of the N images need no pixels: their features were stored."""
        return 0 if self.features is None else self.features.images.count(KNOWN)

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Batch:
        """The same row with its tensors on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same row in page-locked memory; the data loader calls this."""
        return self._map(torch.Tensor.pin_memory)

    def unpack(self) -> Iterator[Batch]:
        """Each sample of the row as a row of its own, in order: for models that cannot keep samples apart.

        Features, where the run keeps any, must all be known.
        """
        starts = self.cu_seqlens.tolist()
        patches = self.image_grid_thw.prod(-1).tolist()
        image, pixel = 0, 0
        for number, (start, end) in enumerate(pairwise(starts)):
            images = self.images_per_sample[number]
            pixels = sum(patches[image : image + images]) if self.features is None else 0
            kept = (self.logits_to_keep >= start) & (self.logits_to_keep < end)
            yield Batch(
                input_ids=self.input_ids[:, start:end],
                position_ids=self.position_ids[..., start:end],
                pixels=self.pixels[pixel : pixel + pixels],
                image_grid_thw=self.image_grid_thw[image : image + images],
                logits_to_keep=self.logits_to_keep[kept] - start,
                targets=self.targets[kept],
                weights=self.weights[kept],
                cu_seqlens=self.cu_seqlens[number : number + 2] - start,
                max_seqlen=end - start,
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
    decode: Decode = "exact",
) -> Batch:
    """The samples ``indices`` of ``corpus`` as one row, built in this process; see ``RowBuilder``."""
    builder = RowBuilder(corpus, filler, with_image, store, decode)
    return to_batch(builder.build([int(index) for index in indices]))


def to_batch(row: Row) -> Batch:
    """The same row as tensors over the same memory."""
    values = {name: getattr(row, name) for name in Row.__slots__}
    tensors = {name: torch.from_numpy(value) for name, value in values.items() if hasattr(value, "dtype")}
    return Batch(**{**values, **tensors, "features": row.features and _features(row.features)})


def _features(found: KnownFeatures) -> RowFeatures:
    known = torch.from_numpy(found.known).view(torch.bfloat16)
    return RowFeatures(known, found.tokens, found.images, found.entries)


class RowDataset(torch.utils.data.Dataset[Batch]):
    """Row number -> batch. Rows that will be asked for next are decoded ahead, by processes of its own."""

    def __init__(
        self, plan: Plan, builder: RowBuilder, loading: Loading | None = None, *, first: int | None = None
    ) -> None:
        """
        Args:
            plan: the rows.
            builder: makes them.
            loading: with how many processes, and how far ahead; None to build each row when it is asked for.
            first: row to begin with at once; None to begin with the first that is asked for.
        """
        self.plan = plan
        self.loader = RowLoader(plan, builder, loading or Loading())
        if first is not None:
            self.loader.begin(first)

    def __len__(self) -> int:
        return len(self.plan)

    def origin(self, sample: int) -> Origin:
        """Where a sample of a row comes from."""
        return self.loader.builder.corpus.origin(sample)

    def __getitem__(self, row: int) -> Batch:
        return to_batch(self.loader.take(row))
