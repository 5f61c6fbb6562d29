"""The good samples of a run: an index, the measured sizes of its images, and the budgets, brought together.

    Index (text, once per tokenizer) + sizes (headers, once per file) + limits of the run -> Corpus

The last step is integers only, so other pixel limits or budgets cost seconds and touch no image file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from triptych.corpus.index import DataFile, Index
from triptych.corpus.lengths import STORED, resized_images, stored_encoding
from triptych.errors import Origin
from triptych.images import identity
from triptych.images.cache_files import intact, mark_used, replacing, seal
from triptych.images.geometry import Geometry, SizedImage
from triptych.images.traits import Trait
from triptych.planning.cost import SampleCost
from triptych.planning.plan import Lengths
from triptych.sources.records import ImageLimits
from triptych.sources.storage import Stamp
from triptych.text.layout import Budget, Layout, fit, lay_out
from triptych.text.template import Encoded

FORMAT = 6
"""Raised when the meaning of a column changes."""


@dataclass(frozen=True, slots=True)
class CorpusSample:
    """One good sample within its budget."""

    encoded: Encoded
    """Its ids with one per image"""
    images: list[SizedImage]
    """In reading order"""
    geometry: Geometry
    origin: Origin

    def layout(self) -> Layout:
        """The sample as the model sees it."""
        resized = [(image.resized_height, image.resized_width) for image in self.images]
        return lay_out(self.encoded, resized, self.geometry, self.origin)


@dataclass(frozen=True, slots=True)
class SampleSums:
    """What tells whether the K good samples are what they were: checksums of their content, and where they stand."""

    text: NDArray[np.uint64]
    """(K,) of ids, targets, their weights and places of images"""
    images: NDArray[np.uint64]
    """(K,) of the size and time of each image file, in reading order"""
    file: NDArray[np.int32]
    """(K,) number of the data file"""
    line: NDArray[np.int64]
    """(K,) line there"""
    files: list[str]


class Corpus:
    """The good samples of a run, K of them, read from disk as they are asked for."""

    def __init__(self, path: Path) -> None:
        """Memory-map the lengths at ``path`` and what they refer to; costs no memory per sample."""
        self.path = path
        with pa.memory_map(str(path)) as source:
            self._lengths = pa.ipc.open_file(source).read_all()
        about = json.loads(self._lengths.schema.metadata[b"about"])
        self.geometry = Geometry(**about["geometry"])
        self._budget = Budget(**about["budget"])
        self._loss_weights: list[float] = about["loss_weights"]
        self._limits = [item and ImageLimits(**item) for item in about["limits"]]
        files = [DataFile(**item) for item in about["files"]]
        self._index = Index(files, [path.parent.parent / "index" / name for name in about["parts"]])
        with pa.memory_map(str(path.parent / about["sizes"])) as source:
            self._sizes = pa.ipc.open_file(source).read_all()

    def __len__(self) -> int:
        return int(self._lengths.num_rows)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}  # a worker maps the files itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    @property
    def index(self) -> Index:
        """What the data files hold, before the limits of the run."""
        return self._index

    @cached_property
    def numbers(self) -> NDArray[np.int64]:
        """(K,) number of each sample in the index"""
        return self._numbers("sample")

    @cached_property
    def lengths(self) -> Lengths:
        return Lengths(self._numbers("tokens"), self._numbers("patches"))

    @cached_property
    def supervised(self) -> NDArray[np.int64]:
        """(K,) supervised tokens"""
        return self._numbers("supervised")

    @cached_property
    def image_counts(self) -> NDArray[np.int64]:
        """(K,) images"""
        return self._numbers("images")

    @cached_property
    def squared_patches(self) -> NDArray[np.float64]:
        """(K,) the squares of the patches of each image, summed over the sample's images.

        Images that were shrunk into a sample's budget are taken as of equal size, which those over its cap are.
        """
        patches = self.natural_patches().astype(np.float64)
        natural, squares = np.zeros((2, self._index.sample_count))
        for start, _, first_image, (images,) in self._index.sample_batches("images"):
            numbers, counts = images.values.to_numpy() + first_image, np.diff(images.offsets.to_numpy())
            owners = np.repeat(np.arange(len(counts)), counts)
            for sums, values in ((natural, patches), (squares, patches**2)):
                sums[start : start + len(counts)] = np.bincount(owners, values[numbers], len(counts))
        samples, own = self._numbers("sample"), self.lengths.patches
        equal = own.astype(np.float64) ** 2 / np.maximum(self.image_counts, 1)
        return np.where(natural[samples] == own, squares[samples], equal)

    def traits(self) -> dict[Trait, int]:
        """How many images have each trait that not every program treats alike."""
        found = self._sizes.column("traits").to_numpy()
        return {trait: int(np.count_nonzero(found & int(trait))) for trait in Trait}

    def costs(self, cost: SampleCost) -> NDArray[np.int64]:
        """(K,) cost of each sample in millions of FLOPs."""
        return cost.of(self.lengths, self.squared_patches, self.supervised)

    def image_sizes(self) -> NDArray[np.int64]:
        """(I, 2) height and width of each image of the index, px; 0 where it cannot be read."""
        return np.stack([self._sizes.column(name).to_numpy().astype(np.int64) for name in ("height", "width")], axis=1)

    def natural_patches(self) -> NDArray[np.int64]:
        """(I,) patches of each image under the limits per image; 0 where its size is not known."""
        found: NDArray[np.int64] = (self.natural_sizes() // self.geometry.patch_size).prod(axis=1)
        return found

    def natural_sizes(self) -> NDArray[np.int64]:
        """(I, 2) height and width of each image under the limits per image, px; 0 where its size is not known."""
        return resized_images(self._index, self.image_sizes(), self.geometry, self._limits)

    @cached_property
    def sources(self) -> NDArray[np.int64]:
        """(K,) number of each sample's source, never falling"""
        return self._numbers("source")

    def origin(self, index: int) -> Origin:
        return self._index.origin(self._sample(index))

    def task(self, index: int) -> str | None:
        task: str | None = self._index.value("task", self._sample(index)).as_py()
        return task

    def sample(self, index: int) -> CorpusSample:
        """The sample within its budget: read and fitted once, whatever is asked of it."""
        number = self._sample(index)
        images = self._index.image_numbers(number)
        measured = self._measured(images)
        limits = [self._index.image_limits(image, self._limits) for image in images]
        fitted = fit(self._encoding(index, number), measured, self.geometry, self._budget, limits)
        sized = [
            SizedImage(*self._index.image(image), *natural, *resized)
            for image, natural, resized in zip(images, measured, fitted.resized, strict=True)
        ]
        return CorpusSample(fitted.encoded, sized, self.geometry, self._index.origin(number))

    def _encoding(self, index: int, number: int) -> Encoded:
        """The ids of a sample, of number ``number`` in the index, its weights times that of its source."""
        encoded = stored_encoding(self._index, number)
        weight = self._loss_weights[self._lengths.column("source")[index].as_py()]
        return encoded if weight == 1 else replace(encoded, weights=encoded.weights * np.float32(weight))

    def encoded(self, index: int) -> Encoded:
        """The sample's ids with one per image, within the budget."""
        return self.sample(index).encoded

    def layout(self, index: int) -> Layout:
        """The sample as the model sees it."""
        return self.sample(index).layout()

    def images(self, index: int) -> list[SizedImage]:
        """The sample's images in reading order."""
        return self.sample(index).images

    def subset(self, indices: NDArray[np.int64]) -> Corpus:
        """These of its samples, in rising order, as a corpus of their own beside this one."""
        digest = xxhash.xxh3_128_hexdigest(np.ascontiguousarray(indices, np.int64).data.cast("B"))
        key = hashlib.sha256(f"{self.path.name} {digest}".encode()).hexdigest()[:20]
        path = self.path.with_name(f"lengths-{key}.arrow")
        if not path.exists() or not intact([path]):
            write_table(path, self._lengths.take(pa.array(indices)))
        mark_used([path])
        return Corpus(path)

    def image_uses(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(U,) sample and (U,) image of each place where a sample shows one; a file has one number, however often it
        is named."""
        known: dict[str, int] = {}
        distinct = np.zeros(self._index.image_count, np.int64)
        for start, locations in self._index.location_batches():
            for number, location in enumerate(map(identity.same_file, locations), start):
                distinct[number] = known.setdefault(location, len(known))
        places = np.full(self._index.sample_count, -1)
        places[self._numbers("sample")] = np.arange(len(self))
        samples, images = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for start, _, first_image, (shown,) in self._index.sample_batches("images"):
            owners = np.repeat(places[start : start + len(shown)], np.diff(shown.offsets.to_numpy()))
            samples.append(owners[owners >= 0])
            images.append(distinct[shown.values.to_numpy() + first_image][owners >= 0])
        return np.concatenate(samples), np.concatenate(images)

    def sums(self) -> SampleSums:
        """Checksums of every sample; asks for the time of each image file, and takes some microseconds per sample."""
        stamps, count = self._stamp_sums(), self._index.sample_count
        text, images = np.zeros((2, count), np.uint64)
        file, line = np.zeros(count, np.int32), np.zeros(count, np.int64)
        names = (*STORED, "images", "line")
        for start, number, first_image, (*lists, shown, lines) in self._index.sample_batches(*names):
            end = start + len(lines)
            text[start:end] = _list_sums([(column.values.to_numpy(), column.offsets.to_numpy()) for column in lists])
            of_images = stamps[shown.values.to_numpy() + first_image]
            images[start:end] = _list_sums([(of_images, shown.offsets.to_numpy())])
            file[start:end], line[start:end] = number, lines.to_numpy()
        good = self._numbers("sample")
        return SampleSums(text[good], images[good], file[good], line[good], [item.path for item in self._index.files])

    def _stamp_sums(self) -> NDArray[np.uint64]:
        """(I,) checksum of size and time of each image file."""
        containers: dict[str, Stamp | None] = {}
        sums = np.zeros(self._index.image_count, np.uint64)
        for start, locations in self._index.location_batches():
            for number, location in enumerate(locations, start):
                sums[number] = xxhash.xxh3_64_intdigest(repr(identity.stamp(location, containers)).encode())
        return sums

    def shown(self, uses: NDArray[np.int64]) -> Iterator[tuple[str, tuple[int, int], int]]:
        """What a run shows of these samples if it takes each of them ``uses`` (K,) times.

        Yields (location, resized (height, width), how often) of each image and size, in no order. What comes twice is
        an image that several data files name, or one of which some samples take a smaller size that others have anyway.
        """
        natural, sizes, shrunk = self._natural_uses(uses)
        for start, locations in self._index.location_batches():
            for number in (start + np.flatnonzero(natural[start : start + len(locations)])).tolist():
                yield locations[number - start], sizes[number], int(natural[number])
        for index in shrunk.tolist():
            for image in self.images(index):
                yield image.location, (image.resized_height, image.resized_width), int(uses[index])

    def _natural_uses(
        self, uses: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], list[tuple[int, int]], NDArray[np.int64]]:
        """(I,) uses of each image at its natural size, that size, and the samples that show smaller ones."""
        resized = self.natural_sizes()
        sizes: list[tuple[int, int]] = list(map(tuple, resized.tolist()))
        patches = (resized // self.geometry.patch_size).prod(axis=1)
        places = np.full(self._index.sample_count, -1)
        places[self._numbers("sample")] = np.arange(len(self))
        natural, shrunk = np.zeros(len(sizes), np.int64), []
        for start, _, first_image, (images,) in self._index.sample_batches("images"):
            taken = places[start : start + len(images)]
            numbers, counts = images.values.to_numpy() + first_image, np.diff(images.offsets.to_numpy())
            owners = np.repeat(taken, counts)
            sums = np.bincount(np.repeat(np.arange(len(taken)), counts), patches[numbers], len(taken))
            whole = (taken >= 0) & (sums == self.lengths.patches[taken])
            shrunk.append(taken[(taken >= 0) & ~whole])
            kept = np.repeat(whole, counts)
            np.add.at(natural, numbers[kept], uses[owners[kept]])
        indices = np.concatenate(shrunk) if shrunk else np.empty(0, np.int64)
        return natural, sizes, indices[uses[indices] > 0]

    def _sample(self, index: int) -> int:
        sample: int = self._lengths.column("sample")[index].as_py()
        return sample

    def _measured(self, numbers: Sequence[int]) -> list[tuple[int, int]]:
        height, width = self._sizes.column("height"), self._sizes.column("width")
        return [(height[number].as_py(), width[number].as_py()) for number in numbers]

    def _numbers(self, column: str) -> NDArray[np.int64]:
        return np.asarray(self._lengths.column(column).to_numpy(), np.int64)


def _list_sums(columns: Sequence[tuple[NDArray[Any], NDArray[np.int32]]]) -> NDArray[np.uint64]:
    """(N,) checksum of the N lists of each column, given as (values, bounds), one column after the other."""
    sums = [0] * (len(columns[0][1]) - 1)
    for values, bounds in columns:
        view, ends = np.ascontiguousarray(values).data.cast("B"), (bounds * values.itemsize).tolist()
        for place, (first, last) in enumerate(pairwise(ends)):
            sums[place] = xxhash.xxh3_64_intdigest(view[first:last], seed=sums[place])
    return np.array(sums, np.uint64)


def write_table(path: Path, table: pa.Table) -> None:
    with (
        replacing(path) as temporary,
        pa.OSFile(temporary, "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table.combine_chunks())
    seal(path)
