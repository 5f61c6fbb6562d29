"""Which image files hold the same bytes: sizes are compared first, so that few files are read and none is decoded."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from triptych.corpus.corpus import Corpus
from triptych.images import identity, measure
from triptych.images.headers.first_bytes import INLINE
from triptych.images.measure import ImageError
from triptych.leaks.columns import image_lists, image_locations
from triptych.sources import members

HEAD = 4096
"""Bytes that are compared first."""


class Contents:
    """The images of some corpora, those of the same bytes under one number."""

    def __init__(self, corpora: Sequence[Corpus]) -> None:
        """Compare them; what is read are files whose height, width and bytes are as many as another's."""
        numbers: dict[str, int] = {}
        self.locations: list[str] = []
        """(L,) distinct ones"""
        sizes: list[tuple[int, int]] = []
        lists = []
        for corpus in corpora:
            found = []
            for location, size in zip(image_locations(corpus), corpus.image_sizes().tolist(), strict=True):
                name = identity.key(location)
                if name not in numbers:
                    numbers[name] = len(self.locations)
                    self.locations.append(location)
                    sizes.append((size[0], size[1]))
                found.append(numbers[name])
            places, (images, bounds) = np.array(found, np.int64), image_lists(corpus)
            lists.append((places[images], bounds))
        self.same = _same_bytes(self.locations, sizes)
        """(L,) the first location that holds the same bytes"""
        self.samples = [(self.same[images], bounds) for images, bounds in lists]
        """Of each corpus the contents of all its samples, and their (K + 1,) bounds"""


def _same_bytes(locations: Sequence[str], sizes: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """(L,) the first location of the same content."""
    same = np.arange(len(locations))
    suspects = _groups(range(len(locations)), lambda number: (sizes[number], _byte_count(locations[number])))
    for content in (_head, _digest):
        suspects = [
            group
            for found in suspects
            for group in _groups(found, lambda number: content(locations[number]))  # noqa: B023
        ]
    for group in suspects:
        same[group] = min(group)
    return same


def _groups(numbers: Sequence[int], key: Callable[[int], Hashable]) -> list[list[int]]:
    """The numbers of equal key, where there are several; those without a key are left out."""
    found: dict[Hashable, list[int]] = {}
    for number in numbers:
        name = key(number)
        if name is not None:
            found.setdefault(name, []).append(number)
    return [group for group in found.values() if len(group) > 1]


def _byte_count(location: str) -> int | None:
    """Bytes of a file; 0 for what is inside another one, whose bytes are counted when they are read."""
    if location.startswith(identity.REFUSED) or identity.is_remote(location):
        return None  # to read all remote images would take hours
    if location.startswith((INLINE, members.PREFIX)):
        return 0
    try:
        return os.stat(location).st_size
    except (OSError, ValueError):
        return None


def _head(location: str) -> tuple[int, int] | None:
    """(bytes, checksum of the first ones)"""
    try:
        with measure.open_bytes(location) as file:
            head = file.read(HEAD)
            return file.seek(0, os.SEEK_END), xxhash.xxh3_64_intdigest(head)
    except (ImageError, OSError):
        return None  # it was removed since it was measured; whoever needs it says so


def _digest(location: str) -> bytes | None:
    found = xxhash.xxh3_128()
    try:
        with measure.open_bytes(location) as file:
            while block := file.read(1 << 20):
                found.update(block)
    except (ImageError, OSError):
        return None
    return found.digest()
