"""A row as tensors, and the rows of a plan as a data set that decodes them ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch

from triptych.corpus.corpus import Corpus
from triptych.errors import Origin, Problem
from triptych.images.pixels import Decode
from triptych.planning.plan import Plan
from triptych.rows.builder import KnownFeatures, Row, RowBuilder, Share
from triptych.rows.feature_store import FeatureReader
from triptych.rows.loader import Loading, RowLoader
from triptych.rows.paths import Paths
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
class SamplePaths:
    """How the B samples of a row that holds what they share once are made of it; see ``rows/paths.py``."""

    tokens: torch.Tensor
    """int64: places in the row of the tokens of each sample, one sample after the other"""
    lengths: tuple[int, ...]
    """(B,) tokens of each sample"""
    own: tuple[int, ...]
    """(B,) how many of them, at its end, no sample before it holds"""
    kept: torch.Tensor
    """(S,) int64: for each target the token that predicts it, counted within its sample"""
    target_counts: tuple[int, ...]
    """(B,) targets of each sample"""
    images: tuple[tuple[int, ...], ...]
    """(B,) which of the row's N images each sample shows"""


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
    """(S,) int64 the tokens to predict there; a shared one stands here once for every sample that holds it"""
    weights: torch.Tensor
    """(S,) float32 how much each counts in the loss"""
    cu_seqlens: torch.Tensor
    """(B + 1,) int32 where each sample starts, or what no sample before it holds, and T"""
    max_seqlen: int
    """Tokens of the longest of these parts"""
    images_per_sample: tuple[int, ...]
    """(B,) how many of the N images each sample holds, and no sample before it"""
    samples: tuple[int, ...]
    """Index of each sample in the corpus; a filler has none."""
    problems: tuple[Problem, ...]
    """Samples that were planned but could not be decoded; they are not in the row."""
    features: RowFeatures | None = None
    """None in a run that keeps no features: then ``pixels`` are those of the N images, or of those in ``shown``."""
    shown: tuple[int, ...] | None = None
    """(N,) which image in ``pixels`` each is, where some show the same; None where each has pixels of its own."""
    paths: SamplePaths | None = None
    """None where no samples share their start."""

    def sample_of_target(self) -> torch.Tensor:
        """(S,) int64 which of the row's B samples each target belongs to."""
        if self.paths is not None:
            counts = torch.tensor(self.paths.target_counts)
            samples = torch.arange(len(counts)).repeat_interleave(counts)
            return samples.to(self.targets.device, non_blocking=True)
        return torch.searchsorted(self.cu_seqlens[1:].to(self.logits_to_keep.dtype), self.logits_to_keep, right=True)

    @property
    def decoded(self) -> tuple[int, ...]:
        """For each image in ``pixels`` the first of the N images that shows it."""
        numbers = self.shown if self.features is None else self.features.images
        if numbers is None:
            return tuple(range(len(self.image_grid_thw)))
        return tuple(numbers.index(image) for image in sorted(set(numbers) - {KNOWN}))

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
        if self.paths is not None or self.shown is not None:
            yield from _unpack_shared(self, self.paths or _whole_paths(self))
            return
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
        paths = self.paths and replace(self.paths, tokens=function(self.paths.tokens), kept=function(self.paths.kept))
        return replace(self, features=features, paths=paths, **tensors)  # type: ignore[arg-type]


def build_batch(
    corpus: Corpus,
    indices: Sequence[int],
    *,
    with_image: bool = False,
    filler: Encoded,
    store: FeatureReader | None = None,
    decode: Decode = "exact",
    share: Share = "nothing",
) -> Batch:
    """The samples ``indices`` of ``corpus`` as one row, built in this process; see ``RowBuilder``."""
    builder = RowBuilder(corpus, filler, with_image, store, decode, share)
    return to_batch(builder.build([int(index) for index in indices]))


def to_batch(row: Row) -> Batch:
    """The same row as tensors over the same memory."""
    values = {name: getattr(row, name) for name in Row.__slots__}
    tensors = {name: torch.from_numpy(value) for name, value in values.items() if hasattr(value, "dtype")}
    nested = {"features": row.features and _features(row.features), "paths": row.paths and _paths(row.paths)}
    return Batch(**{**values, **tensors, **nested})


def _paths(found: Paths) -> SamplePaths:
    values = {name: getattr(found, name) for name in Paths.__slots__}
    return SamplePaths(**{**values, "tokens": torch.from_numpy(found.tokens), "kept": torch.from_numpy(found.kept)})


def _whole_paths(batch: Batch) -> SamplePaths:
    """Of a row whose samples share no tokens."""
    lengths = batch.cu_seqlens.diff().tolist()
    ends = list(accumulate(batch.images_per_sample))
    samples = batch.sample_of_target()
    return SamplePaths(
        tokens=torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device),
        lengths=tuple(lengths),
        own=tuple(lengths),
        kept=batch.logits_to_keep - batch.cu_seqlens[samples],
        target_counts=tuple(torch.bincount(samples, minlength=len(lengths)).tolist()),
        images=tuple(tuple(range(end - count, end)) for end, count in zip(ends, batch.images_per_sample, strict=True)),
    )


def _unpack_shared(batch: Batch, paths: SamplePaths) -> Iterator[Batch]:
    """``unpack`` of a row whose samples share tokens or pixels."""
    target_ends = list(accumulate(paths.target_counts))
    patches = [] if batch.features is not None else batch.image_grid_thw[list(batch.decoded)].prod(-1).tolist()
    pixels = torch.split(batch.pixels, patches) if patches else ()
    features = [] if batch.features is None else torch.split(batch.features.known, list(batch.features.tokens), 1)
    for number, places in enumerate(torch.split(paths.tokens, list(paths.lengths))):
        images, last = list(paths.images[number]), target_ends[number]
        shown = images if batch.shown is None else [batch.shown[image] for image in images]
        chosen = slice(last - paths.target_counts[number], last)
        yield Batch(
            input_ids=batch.input_ids[:, places],
            position_ids=batch.position_ids[..., places],
            pixels=torch.cat([pixels[image] for image in shown]) if pixels and shown else batch.pixels[:0],
            image_grid_thw=batch.image_grid_thw[images],
            logits_to_keep=paths.kept[chosen],
            targets=batch.targets[chosen],
            weights=batch.weights[chosen],
            cu_seqlens=torch.tensor([0, len(places)], dtype=torch.int32, device=places.device),
            max_seqlen=len(places),
            images_per_sample=(len(images),),
            samples=batch.samples[number : number + 1],  # none for a filler, which comes last
            problems=(),
            features=batch.features and _features_of(batch.features, features, images),
        )


def _features_of(features: RowFeatures, each: Sequence[torch.Tensor], images: Sequence[int]) -> RowFeatures:
    """The features of some images of a row, of those of ``each``."""
    known = torch.cat([features.known[:, :0], *(each[image] for image in images)], 1)
    return RowFeatures(known, tuple(features.tokens[image] for image in images), (KNOWN,) * len(images), ())


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
