"""The images of one row: features that the store holds are read, the other images decoded, each once.

A row that shows four images, the second and the last of them the same, the third stored already:

    image           a   b   c   b
    decoded       0   1  -1   1      pixels: a, b    known: c
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from triptych.errors import Origin, Problem
from triptych.images import pixels
from triptych.images.geometry import Geometry, SizedImage
from triptych.images.measure import ImageError
from triptych.images.pixels import Decode
from triptych.rows.feature_store import FeatureReader, entry_names
from triptych.sources.storage import Stamp

ImageKey = tuple[str, int, int]
"""Where an image is and the size that it is shown at, px: equal keys are equal pixels."""

KNOWN = -1
"""Stands for the number of an image where the image's features are known."""


@dataclass(frozen=True, slots=True)
class ImageReading:
    """How the images of rows are read."""

    geometry: Geometry
    """The model's patch arithmetic."""
    store: FeatureReader | None = None
    """Where features are kept; None to decode every image."""
    decode: Decode = "exact"
    once: bool = False
    """Whether an image that the row shows several times is decoded once, also without a store."""
    pool: Executor | None = None
    """Threads that decode side by side; None for one image after the other."""
    watch: Watch | None = None
    """Who is told which image is in hand; None for nobody."""


def image_key(image: SizedImage) -> ImageKey:
    """What tells an image of a row from others."""
    return image.location, image.resized_height, image.resized_width


class Watch(Protocol):
    """Sees whether a process goes on."""

    def reading(self, location: str) -> AbstractContextManager[None]:
        """An image is in hand.

        Raises:
            ImageError: if it must not be tried again.
        """


class Memory(Protocol):
    """Where the pixels of a row are put."""

    def allocate(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """An array of undefined content, to be filled by ``fill`` alone."""

    def fill(self, target: NDArray[np.uint8], source: NDArray[np.uint8]) -> None:
        """Copy into a contiguous part of the array; several threads may do so at once."""


class OwnMemory:
    """Memory of this process."""

    def allocate(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        return np.empty(shape, np.uint8)

    def fill(self, target: NDArray[np.uint8], source: NDArray[np.uint8]) -> None:
        target[...] = source


@dataclass(frozen=True, slots=True)
class Room:
    """Memory for the images of one row; what it holds is never moved."""

    memory: Memory
    pixels: NDArray[np.uint8]
    """(P, 3 * p * p) of ``memory``, no fewer patches than the row has"""
    known: NDArray[np.uint16]
    """(levels, tokens, hidden), no fewer tokens than the row's images have; bfloat16 as its bits"""


@dataclass(slots=True)
class _Image:
    image: SizedImage
    number: int  # in its sample
    origin: Origin
    target: NDArray[np.uint8]

    def decode(self, reading: ImageReading, memory: Memory) -> Problem | None:
        watch = reading.watch
        try:
            with nullcontext() if watch is None else watch.reading(self.image.location):
                found = pixels.decode_image(self.image, self.number, reading.geometry, self.origin, reading.decode)
        except ImageError as error:
            return Problem(error.code, self.origin, error.message, image=self.number)
        if isinstance(found, Problem):
            return found
        memory.fill(self.target, found)
        return None


@dataclass(slots=True)
class RowImages:
    """Gathers the images of a row, sample by sample; then decodes what has to be."""

    reading: ImageReading
    room: Room
    numbers: list[int] = field(default_factory=list)
    """For each image the number of the decoded image it is, or ``KNOWN``."""
    tokens: list[int] = field(default_factory=list)
    """Of each image."""
    entries: list[bytes | None] = field(default_factory=list)
    """For each decoded image the name that its features are stored under; None for one that is not stored."""
    _images: list[_Image] = field(default_factory=list)
    _patches: int = 0
    _known: int = 0
    _named: dict[bytes | ImageKey, int] = field(default_factory=dict)
    _containers: dict[str, Stamp | None] = field(default_factory=dict)
    _refreshed: bool = False

    def add(self, sized: Sequence[SizedImage], origin: Origin, known: int = 0) -> None:
        """Take in the images of a sample but the first ``known``, which the row holds already."""
        store, decode = self.reading.store, self.reading.decode
        entries = [None] * len(sized) if store is None else entry_names(sized, self._containers, decode)
        for number, (image, entry) in enumerate(zip(sized[known:], entries[known:], strict=True), known + 1):
            tokens = self.reading.geometry.tokens(image.resized_height, image.resized_width)
            self.tokens.append(tokens)
            name = entry if entry is not None or not self.reading.once else image_key(image)
            decoded = None if name is None else self._find(name, tokens)
            if decoded is None:
                decoded = len(self.entries)
                self.entries.append(entry)
                self._images.append(_Image(image, number, origin, self._take(tokens)))
                if name is not None:
                    self._named[name] = decoded
            self.numbers.append(decoded)

    def add_filler(self) -> None:
        """Take in a blank image of one token."""
        side = self.reading.geometry.factor
        tokens = self.reading.geometry.tokens(side, side)
        self.numbers.append(len(self.entries))
        self.tokens.append(tokens)
        self.entries.append(None)
        blank = pixels.patchify(Image.new("L", (side, side)), self.reading.geometry)
        self.room.memory.fill(self._take(tokens), blank)

    def decode(self) -> list[Problem]:
        """Decode the images into their places; returns what does not decode, in order."""
        pool = self.reading.pool
        run: Callable[..., Iterable[Problem | None]] = map if pool is None else pool.map
        found = list(run(lambda image: image.decode(self.reading, self.room.memory), self._images))
        return [problem for problem in found if problem is not None]

    def pixels(self) -> NDArray[np.uint8]:
        """(P, 3 * p * p) patches of the images, one after the other."""
        return self.room.pixels[: self._patches]

    def known(self) -> NDArray[np.uint16]:
        """(levels, tokens, hidden) stored features, image after image, bfloat16 as its bits."""
        return np.ascontiguousarray(self.room.known[:, : self._known])

    def _take(self, tokens: int) -> NDArray[np.uint8]:
        start = self._patches
        self._patches += tokens * self.reading.geometry.merge_size**2
        return self.room.pixels[start : self._patches]

    def _find(self, entry: bytes | ImageKey, tokens: int) -> int | None:
        """The decoded image that an entry is, ``KNOWN`` if it could be read, None if it is to be decoded."""
        store = self.reading.store
        if entry in self._named:
            return self._named[entry]
        if store is None or isinstance(entry, tuple):
            return None
        if entry not in store and not self._refreshed:
            store.refresh()
            self._refreshed = True
        if not store.read(entry, self.room.known[:, self._known : self._known + tokens]):
            return None
        self._known += tokens
        return KNOWN
