"""A row as tensors, and the rows of a plan as a data set that decodes them ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from triptych.corpus.corpus import Corpus
from triptych.errors import Origin, Problem
from triptych.images.pixels import Decode
from triptych.planning.plan import Plan
from triptych.rows.builder import KnownFeatures, Row, RowBuilder, Share
from triptych.rows.feature_store import FeatureReader
from triptych.rows.loader import Loading, RowLoader
from triptych.rows.paths import DistinctTargets, Paths
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


@dataclass(frozen=True, slots=True)
class SamplePaths:
    """How the B samples of a row are made of it, which holds what they share once; see ``rows/paths.py``."""

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

    @property
    def shared(self) -> bool:
        """Whether any token is in more than one sample."""
        return self.own != self.lengths


@dataclass(frozen=True, slots=True)
class RowTargets:
    """The S targets of a row without repetition: D pairs of a token that predicts and what it predicts."""

    logits_to_keep: torch.Tensor
    """(D,) int64 positions"""
    targets: torch.Tensor
    """(D,) int64 the tokens to predict there"""
    numbers: torch.Tensor
    """(S,) int64 which of the D each target is"""

    def sums(self, weights: torch.Tensor) -> torch.Tensor:
        """(D,) of the (S,) weights of the targets."""
        return weights.new_zeros(len(self.targets)).index_add(0, self.numbers, weights)


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
    paths: SamplePaths
    """Which tokens, targets and images each sample is made of, known without asking the device"""
    image_patches: tuple[int, ...]
    """(N,) patches of each image, the same"""
    samples: tuple[int, ...]
    """Index of each sample in the corpus; a filler has none."""
    problems: tuple[Problem, ...]
    """Samples that were planned but could not be decoded; they are not in the row."""
    features: RowFeatures | None = None
    """None in a run that keeps no features: then ``pixels`` are those of the N images, or of those in ``shown``."""
    shown: tuple[int, ...] | None = None
    """(N,) which image in ``pixels`` each is, where some show the same; None where each has pixels of its own."""
    distinct: RowTargets | None = None
    """Its targets without repetition, where samples share some; None where none comes twice."""

    @property
    def max_seqlen(self) -> int:
        """Tokens of the longest part between ``cu_seqlens``."""
        return max(self.paths.own)

    def sample_of_target(self) -> torch.Tensor:
        """(S,) int64 which of the row's B samples each target belongs to."""
        counts = torch.tensor(self.paths.target_counts)
        samples = torch.arange(len(counts)).repeat_interleave(counts)
        return samples.to(self.targets.device, non_blocking=True)

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
        paths, ends = self.paths, list(accumulate(self.paths.target_counts))
        pixels = torch.split(self.pixels, [self.image_patches[image] for image in self.decoded] or [0])
        features = [] if self.features is None else torch.split(self.features.known, list(self.features.tokens), 1)
        for number, places in enumerate(torch.split(paths.tokens, list(paths.lengths))):
            images, last = list(paths.images[number]), ends[number]
            shown = images if self.shown is None else [self.shown[image] for image in images]
            chosen = slice(last - paths.target_counts[number], last)
            yield Batch(
                input_ids=self.input_ids[:, places],
                position_ids=self.position_ids[..., places],
                pixels=torch.cat([self.pixels[:0], *(pixels[image] for image in shown if self.features is None)]),
                image_grid_thw=self.image_grid_thw[images],
                logits_to_keep=paths.kept[chosen],
                targets=self.targets[chosen],
                weights=self.weights[chosen],
                cu_seqlens=torch.tensor([0, len(places)], dtype=torch.int32).to(places.device, non_blocking=True),
                paths=end_to_end([len(places)], [paths.kept[chosen]], [len(images)]),
                image_patches=tuple(self.image_patches[image] for image in images),
                samples=self.samples[number : number + 1],  # none for a filler, which comes last
                problems=(),
                features=self.features and _features_of(self.features, features, images),
            )

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        values = {name: getattr(self, name) for name in self.__slots__}
        tensors = {name: function(value) for name, value in values.items() if isinstance(value, torch.Tensor)}
        features = self.features and replace(self.features, known=function(self.features.known))
        paths = replace(self.paths, tokens=function(self.paths.tokens), kept=function(self.paths.kept))
        distinct = self.distinct and RowTargets(*(function(getattr(self.distinct, n)) for n in RowTargets.__slots__))
        return replace(self, features=features, paths=paths, distinct=distinct, **tensors)  # type: ignore[arg-type]


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
    nested = {
        "features": row.features and _features(row.features),
        "paths": _paths(row.paths),
        "distinct": row.distinct and _distinct(row.distinct),
    }
    return Batch(**{**values, **tensors, **nested})


def _distinct(found: DistinctTargets) -> RowTargets:
    return RowTargets(*(torch.from_numpy(getattr(found, name)) for name in DistinctTargets.__slots__))


def _paths(found: Paths) -> SamplePaths:
    values = {name: getattr(found, name) for name in Paths.__slots__}
    return SamplePaths(**{**values, "tokens": torch.from_numpy(found.tokens), "kept": torch.from_numpy(found.kept)})


def end_to_end(lengths: Sequence[int], kept: Sequence[torch.Tensor], images: Sequence[int]) -> SamplePaths:
    """Of B samples that share nothing.

    Args:
        lengths: (B,) tokens of each.
        kept: of each the tokens that predict its targets, counted within it; on the row's device.
        images: (B,) how many images each shows.
    """
    ends = accumulate(images)
    return SamplePaths(
        tokens=torch.arange(sum(lengths), device=kept[0].device),
        lengths=tuple(lengths),
        own=tuple(lengths),
        kept=torch.cat(list(kept)),
        target_counts=tuple(map(len, kept)),
        images=tuple(tuple(range(end - count, end)) for end, count in zip(ends, images, strict=True)),
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
