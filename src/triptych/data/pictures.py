"""The pictures of one row: features that the store holds are read, the other pictures decoded, each once.

A row that shows four images, the second and the last of them the same, the third stored already:

    image           a   b   c   b
    picture         0   1  -1   1      pixels: a, b    known: c
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from triptych.data import pixels
from triptych.data.features import FeatureReader, entry_names
from triptych.data.geometry import Geometry
from triptych.data.samples import SizedImage
from triptych.data.storage import Stamp
from triptych.errors import Origin, Problem

KNOWN = -1
"""Stands for the number of a picture where the image's features are known."""


class RowPictures:
    """Gathers the images of a row, sample by sample."""

    def __init__(self, geometry: Geometry, store: FeatureReader | None = None, *, tokens: int = 0) -> None:
        """
        Args:
            geometry: the model's patch arithmetic.
            store: where features are kept; None to decode every image.
            tokens: that all images of the row cost at most; room for so many features is made.
        """
        self.geometry = geometry
        self.store = store
        self.patches: list[NDArray[np.uint8]] = []
        """Of each picture that was decoded."""
        self.numbers: list[int] = []
        """For each image the number of its picture, or ``KNOWN``."""
        self.tokens: list[int] = []
        """Of each image."""
        self.entries: list[bytes | None] = []
        """For each picture the name that its features are stored under; None for one that is not stored."""
        levels, hidden = (store.shape.levels, store.shape.hidden) if store else (0, 0)
        self._room = np.empty((levels, tokens if store else 0, hidden), np.uint16)
        self._known = 0
        self._containers: dict[str, Stamp | None] = {}
        self._refreshed = False

    def add(self, sized: Sequence[SizedImage], origin: Origin) -> list[Problem]:
        """Take in the images of a sample; if one of them does not decode, none of them, and why."""
        if self.store is None:
            patches, problems = pixels.decode_images(sized, self.geometry, origin)
            if not problems:
                self.patches += patches
            return problems
        before = len(self.patches), len(self.numbers), self._known
        problems = []
        for number, (image, entry) in enumerate(zip(sized, entry_names(sized, self._containers), strict=True), 1):
            problem = self._add(self.store, image, entry, number, origin)
            problems += [problem] if problem else []
        if problems:
            pictures, images, self._known = before
            del self.patches[pictures:], self.entries[pictures:], self.numbers[images:], self.tokens[images:]
        return problems

    def add_filler(self) -> None:
        """Take in a blank picture of one token."""
        side = self.geometry.factor
        self.numbers.append(len(self.patches))
        self.tokens.append(self.geometry.tokens(side, side))
        self.entries.append(None)
        self.patches.append(pixels.patchify(np.zeros((side, side, 3), np.uint8), self.geometry))

    def pixels(self) -> NDArray[np.uint8]:
        """(P, 3 * p * p) patches of the pictures, one after the other."""
        return pixels.join(self.patches, self.geometry)

    def known(self) -> NDArray[np.uint16]:
        """(levels, tokens, hidden) stored features, image after image, bfloat16 as its bits."""
        known = self._room[:, : self._known]
        # A row that is known in part would carry its unused room along.
        return known if self._known == self._room.shape[1] else known.copy()

    def _add(
        self, store: FeatureReader, image: SizedImage, entry: bytes | None, number: int, origin: Origin
    ) -> Problem | None:
        tokens = self.geometry.tokens(image.resized_height, image.resized_width)
        if entry is not None and entry in self.entries:
            picture = self.entries.index(entry)
        elif entry is not None and self._read(store, entry, tokens):
            picture = KNOWN
        else:
            decoded = pixels.decode_image(image, number, self.geometry, origin)
            if isinstance(decoded, Problem):
                return decoded
            picture = len(self.patches)
            self.patches.append(decoded)
            self.entries.append(entry)
        self.numbers.append(picture)
        self.tokens.append(tokens)
        return None

    def _read(self, store: FeatureReader, entry: bytes, tokens: int) -> bool:
        if entry not in store and not self._refreshed:
            store.refresh()
            self._refreshed = True
        read = store.read(entry, self._room[:, self._known : self._known + tokens])
        self._known += tokens if read else 0
        return read
