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
from numpy.typing import NDArray

from triptych.data import pixels
from triptych.data.corpus import Corpus
from triptych.data.geometry import Geometry
from triptych.data.layout import Layout, lay_out
from triptych.data.plan import Plan
from triptych.data.template import Encoded
from triptych.errors import Origin, Problem


@dataclass(frozen=True, slots=True)
class Batch:
    """One row of samples that cannot see each other. T tokens, S targets, P patches, N images, B samples."""

    input_ids: torch.Tensor
    """(1, T) int64"""
    position_ids: torch.Tensor
    """(4, 1, T) int64: row 0 restarts with every sample, rows 1-3 are M-RoPE temporal, height, width."""
    pixels: torch.Tensor
    """(P, 3 * p * p) uint8, neither normalised nor repeated in time"""
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

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Batch:
        """The same row with its tensors on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same row in page-locked memory; the data loader calls this."""
        return self._map(torch.Tensor.pin_memory)

    def alone(self) -> Iterator[Batch]:
        """Each sample of the row as a row of its own, in order: for models that cannot keep samples apart."""
        starts = self.starts.tolist()
        patches = self.image_grid_thw.prod(-1).tolist()
        image, pixel = 0, 0
        for number, (start, end) in enumerate(pairwise(starts)):
            images = self.images_per_sample[number]
            pixels = sum(patches[image : image + images])
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
            )
            image, pixel = image + images, pixel + pixels

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        values = {name: getattr(self, name) for name in self.__slots__}
        tensors = {name: function(value) for name, value in values.items() if isinstance(value, torch.Tensor)}
        return replace(self, **tensors)  # type: ignore[arg-type]


def build_batch(corpus: Corpus, indices: Sequence[int], *, with_image: bool = False, filler: Encoded) -> Batch:
    """Decode the images of the samples ``indices`` and lay them end to end.

    Args:
        corpus: the indexed samples.
        indices: which of them, in order.
        with_image: put a filler picture into a row that has none. Ranks that train the vision tower together must all
            run it; the filler is a sample of its own, so no other sample sees it, and it has no target.
        filler: the filler's ids (one picture, no target).

    Samples whose images fail to decode are left out and named in ``problems``. A row left without any sample holds
    the filler.
    """
    layouts: list[Layout] = []
    patches: list[NDArray[np.uint8]] = []
    used: list[int] = []
    problems: list[Problem] = []
    for index in indices:
        decoded, failed = pixels.decode_images(corpus.images(int(index)), corpus.geometry, corpus.origin(int(index)))
        if failed:
            problems.extend(failed)
            continue
        layouts.append(corpus.layout(int(index)))
        patches.extend(decoded)
        used.append(int(index))
    if not layouts or (with_image and not patches):
        side = corpus.geometry.factor
        layouts.append(lay_out(filler, [(side, side)], corpus.geometry, Origin("filler", 0)))
        patches.append(pixels.patchify(np.zeros((side, side, 3), np.uint8), corpus.geometry))
    return _join(layouts, patches, corpus.geometry, tuple(used), tuple(problems))


def _join(
    layouts: Sequence[Layout],
    patches: Sequence[NDArray[np.uint8]],
    geometry: Geometry,
    samples: tuple[int, ...],
    problems: tuple[Problem, ...],
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
        pixels=torch.from_numpy(pixels.join(patches, geometry)),
        image_grid_thw=torch.from_numpy(np.concatenate([layout.grids for layout in layouts])),
        keep=torch.from_numpy(targets - 1),
        targets=torch.from_numpy(ids[targets]),
        starts=torch.from_numpy(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)),
        longest=max(lengths),
        images_per_sample=tuple(len(layout.grids) for layout in layouts),
        samples=samples,
        problems=problems,
    )


class RowDataset(torch.utils.data.Dataset[Batch]):
    """Row number -> batch: what a data loader's workers call. Holds integers and a path, decodes on demand."""

    def __init__(self, corpus: Corpus, plan: Plan, filler: Encoded, *, with_image: bool = False) -> None:
        self.corpus = corpus
        self.plan = plan
        self.filler = filler
        self.with_image = with_image

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, row: int) -> Batch:
        return build_batch(self.corpus, self.plan.row(row).tolist(), with_image=self.with_image, filler=self.filler)
