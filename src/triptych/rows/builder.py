"""Build one row: samples end to end, without padding, positions that keep them apart, pixels decoded just in time.

Three samples of 2, 3 and 1 tokens; row 0 of the position ids is what keeps them from seeing each other:

    sample   a  a  b  b  b  c
    row 0    0  1  0  1  2  0

Nothing here imports torch: the processes that build rows start in a fraction of a second and stay small.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from triptych.corpus.corpus import Corpus
from triptych.errors import Origin, Problem
from triptych.images.pixels import Decode
from triptych.rows.feature_store import FeatureReader
from triptych.rows.paths import DistinctTargets, PathBuilder, Paths, distinct_targets
from triptych.rows.row_images import ImageReading, Memory, OwnMemory, Room, RowImages, Watch, image_key
from triptych.text.layout import lay_out
from triptych.text.template import Encoded

Share = Literal["nothing", "images", "starts"]

BYTES_PER_TOKEN = 64
"""At least what ids, positions and targets take per token: int64 of 1 id, 4 positions, 1 target and its place, and a
float32 weight."""


@dataclass(frozen=True, slots=True)
class KnownFeatures:
    """``RowFeatures`` of ``batch.py`` before it is tensors."""

    known: NDArray[np.uint16]
    """(L, F, D) bfloat16 as its bits"""
    tokens: tuple[int, ...]
    images: tuple[int, ...]
    entries: tuple[bytes | None, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """``Batch`` of ``batch.py`` before it is tensors; the same fields in the same shapes."""

    input_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    image_grid_thw: NDArray[np.int64]
    logits_to_keep: NDArray[np.int64]
    targets: NDArray[np.int64]
    weights: NDArray[np.float32]
    cu_seqlens: NDArray[np.int32]
    paths: Paths
    image_patches: tuple[int, ...]
    samples: tuple[int, ...]
    problems: tuple[Problem, ...]
    features: KnownFeatures | None
    shown: tuple[int, ...] | None
    distinct: DistinctTargets | None


@dataclass(frozen=True, slots=True)
class RowBuilder:
    """Sample indices -> row. Holds integers and a path, so that it can go to another process."""

    corpus: Corpus
    filler: Encoded
    """Ids of a sample of one image, without a target"""
    with_image: bool = False
    """Put a filler image into a row that has none. Ranks that train the vision tower together must all run it; the
    filler is a sample of its own, so no other sample sees it, and it has no target."""
    store: FeatureReader | None = None
    """Where features are kept: what it holds is read instead of decoded, what repeats in the row is decoded once."""
    decode: Decode = "exact"
    share: Share = "nothing"
    """What samples of a row share: the tokens that they begin with (``starts``), features of images only, or nothing"""

    def build(
        self,
        indices: Sequence[int],
        pool: Executor | None = None,
        memory: Memory | None = None,
        watch: Watch | None = None,
    ) -> Row:
        """Decode the images of the samples ``indices`` and lay them end to end.

        Args:
            indices: of the samples in the corpus, in order.
            pool: threads that decode side by side; None for one image after the other.
            memory: for the pixels; None for this process's own.
            watch: who is told which image is in hand; None for nobody.

        Samples whose images fail to decode are left out and named in ``problems``. A row left without any sample holds
        the filler.
        """
        once = self.share != "nothing"
        reading = ImageReading(self.corpus.geometry, self.store, self.decode, once, pool, watch)
        room = self._room(indices, memory or OwnMemory())
        samples, problems = list(indices), list[Problem]()
        while True:
            row, failed = self._try(samples, reading, room, tuple(problems))
            if not failed:
                return row
            # Rare, for all were checked before: build the row again, as if the sample had never been in it.
            problems += failed
            lost = {problem.origin for problem in failed}
            samples = [index for index in samples if self.corpus.origin(index) not in lost]

    def bytes_at_most(self, indices: NDArray[np.int64]) -> int:
        """Memory that the row takes, before anything is read; exact but for features that turn out to be known."""
        tokens, patches = self._lengths(indices)
        geometry = self.corpus.geometry
        pixels = (patches + geometry.merge_size**2) * 3 * geometry.patch_size**2
        features = 0
        if self.store is not None:
            shape = self.store.shape
            # Of several levels, those that are known in part are put together once more.
            features = shape.size(patches // geometry.merge_size**2) * min(shape.levels, 2)
        return max(pixels, features) + tokens * BYTES_PER_TOKEN

    def _lengths(self, indices: Sequence[int] | NDArray[np.int64]) -> tuple[int, int]:
        numbers = np.asarray(indices, np.int64)
        lengths = self.corpus.lengths
        return int(lengths.tokens[numbers].sum()), int(lengths.patches[numbers].sum())

    def _room(self, indices: Sequence[int], memory: Memory) -> Room:
        geometry, store = self.corpus.geometry, self.store
        _, patches = self._lengths(indices)
        one_token = geometry.merge_size**2
        levels, hidden = (store.shape.levels, store.shape.hidden) if store else (0, 0)
        return Room(
            memory,
            memory.allocate((patches + one_token, 3 * geometry.patch_size**2)),  # and a filler
            np.empty((levels, patches // one_token if store else 0, hidden), np.uint16),
        )

    def _try(
        self, samples: Sequence[int], reading: ImageReading, room: Room, problems: tuple[Problem, ...]
    ) -> tuple[Row, list[Problem]]:
        """The row of these samples; or, as the second value, why it is none."""
        corpus = self.corpus
        row_images = RowImages(reading, room)
        paths = PathBuilder(int(self.filler.ids[self.filler.slots[0]]), shares=self.share == "starts")
        for index in samples:
            sample = corpus.sample(index)
            known = paths.add(sample.layout(), tuple(map(image_key, sample.images)))
            row_images.add(sample.images, sample.origin, known)
        if not samples or (self.with_image and not row_images.numbers):
            side = corpus.geometry.factor
            paths.add(lay_out(self.filler, [(side, side)], corpus.geometry, Origin("filler", 0)), ())
            row_images.add_filler()
        failed = row_images.decode()
        return _join(paths, row_images, tuple(samples), problems), failed


def _join(builder: PathBuilder, row_images: RowImages, samples: tuple[int, ...], problems: tuple[Problem, ...]) -> Row:
    layouts, paths = builder.layouts, builder.finish()
    ids = np.concatenate([layout.input_ids[start:] for layout, start in zip(layouts, builder.starts, strict=True)])
    # A sample's first token is never supervised, so a target's predecessor always lies in the same sample.
    places = np.repeat(_starts(paths.lengths), paths.target_counts) + paths.kept
    positions = [
        np.concatenate((np.arange(len(layout.input_ids))[None], layout.position_ids))[:, start:]
        for layout, start in zip(layouts, builder.starts, strict=True)
    ]
    shown = row_images.numbers
    grids = [layout.grids[len(layout.grids) - own :] for layout, own in zip(layouts, builder.own_images, strict=True)]
    kept = paths.tokens[places]
    targets = np.concatenate([layout.input_ids[layout.weights != 0] for layout in layouts])
    return Row(
        input_ids=ids[None],
        position_ids=np.concatenate(positions, axis=1)[:, None],
        pixels=row_images.pixels(),
        image_grid_thw=np.concatenate(grids),
        logits_to_keep=kept,
        targets=targets,
        weights=np.concatenate([layout.weights[layout.weights != 0] for layout in layouts]),
        cu_seqlens=np.concatenate(([0], np.cumsum(paths.own))).astype(np.int32),
        paths=paths,
        image_patches=tuple(np.concatenate(grids).prod(1).tolist()),
        samples=samples,
        problems=problems,
        features=_features(row_images),
        distinct=distinct_targets(kept, targets) if paths.own != paths.lengths else None,
        shown=tuple(shown) if row_images.reading.store is None and len(set(shown)) < len(shown) else None,
    )


def _starts(lengths: Sequence[int]) -> NDArray[np.int64]:
    return np.asarray(np.cumsum([0, *lengths[:-1]]), np.int64)


def _features(row_images: RowImages) -> KnownFeatures | None:
    if row_images.reading.store is None:
        return None
    return KnownFeatures(
        row_images.known(), tuple(row_images.tokens), tuple(row_images.numbers), tuple(row_images.entries)
    )
