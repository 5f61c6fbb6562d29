"""What the samples of a corpus share at their start, from its ids and the sizes of its images; no pixel is decoded."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from triptych.corpus.corpus import Corpus
from triptych.images.cache_files import intact, mark_used, seal
from triptych.images.geometry import SizedImage
from triptych.planning.prefixes import Keys, Prefixes, find_prefixes

FORMAT = 1
"""Raised when what is found for the same corpus changes."""


def load_or_find(corpus: Corpus) -> Prefixes:
    """What the samples of ``corpus`` share, kept in the cache beside their lengths."""
    path = corpus.path.with_name(f"{corpus.path.stem}-prefixes-{FORMAT}.npz")
    if path.exists() and intact([path]):
        mark_used([path])
        with np.load(path) as content:
            return Prefixes(content["samples"], content["tokens"], content["image_tokens"])
    keys = CorpusKeys(corpus)
    found = find_prefixes(keys.read, keys.image_tokens, len(corpus))
    _write(path, found)
    return found


def _write(path: Path, found: Prefixes) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, samples=found.samples, tokens=found.tokens, image_tokens=found.image_tokens)
    unfinished = path.with_name(f".writing-{os.getpid()}-{path.name}")
    unfinished.write_bytes(buffer.getbuffer())
    unfinished.replace(path)
    seal(path)


class CorpusKeys:
    """The samples of a corpus as keys: an image is the same wherever the same file is shown at the same size."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        merged = corpus.geometry.merge_size**2
        sizes = corpus.natural_sizes()
        self._files = _file_numbers(corpus, sizes)
        self._natural = dict(zip(self._files.tolist(), map(tuple, sizes.tolist()), strict=True))
        natural = corpus.natural_patches() // merged
        tokens = np.zeros(int(self._files.max(initial=-1)) + 1, np.int64)
        tokens[self._files] = natural
        self._places = np.full(corpus.index.sample_count, -1)
        self._places[corpus.numbers] = np.arange(len(corpus))
        self._fitted: dict[tuple[int, int, int], int] = {}
        """Images at other than their natural size: (file, height, width) -> its number"""
        more: list[int] = []
        self._changed = self._find_changed(natural)
        self._refit(len(tokens), more)
        self.image_tokens = np.concatenate((tokens, np.array(more, np.int64)))
        """(I,) language tokens of each image"""

    def read(self) -> Iterator[Keys]:
        """All samples, piece by piece."""
        for start, _, first_image, (ids, slots, images) in self._corpus.index.sample_batches("ids", "slots", "images"):
            bounds = ids.offsets.to_numpy().astype(np.int64)
            flat = ids.values.to_numpy().copy()
            counts = np.diff(slots.offsets.to_numpy())
            at = slots.values.to_numpy() + np.repeat(bounds[:-1], counts)
            flat[at] = -1 - self._files[images.values.to_numpy() + first_image]
            places = self._places[start : start + len(ids)]
            yield Keys(places, flat, bounds).take((places >= 0) & ~self._changed[places])
        for place in np.flatnonzero(self._changed).tolist():
            keys = self._keys(place)
            yield Keys(np.array([place]), keys, np.array([0, len(keys)]))

    def _find_changed(self, natural: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(K,) whether images were shrunk, text was cut to keep a budget, or boxes were filled in."""
        lengths, merged = self._corpus.lengths, self._corpus.geometry.merge_size**2
        changed = np.zeros(len(self._corpus), np.bool_)
        for start, _, first_image, (ids, images, boxes) in self._corpus.index.sample_batches("ids", "images", "boxes"):
            places = self._places[start : start + len(ids)]
            counts = np.diff(images.offsets.to_numpy())
            owners = np.repeat(np.arange(len(ids)), counts)
            shown = np.bincount(owners, natural[images.values.to_numpy() + first_image], len(ids))
            tokens = np.diff(ids.offsets.to_numpy()) - counts + shown
            good = places >= 0
            own = places[good]
            changed[own] = (tokens[good] != lengths.tokens[own]) | (shown[good] * merged != lengths.patches[own])
            changed[own] |= np.diff(boxes.offsets.to_numpy())[good] > 0
        return changed

    def _refit(self, known: int, tokens: list[int]) -> None:
        """Number the images of samples that were changed, from ``known`` on, and add their ``tokens``."""
        geometry, natural = self._corpus.geometry, self._natural
        for place in np.flatnonzero(self._changed).tolist():
            for key, image in self._sized(place):
                size = image.resized_height, image.resized_width
                if key in self._fitted:
                    continue
                if size == natural[key[0]]:
                    self._fitted[key] = key[0]
                else:
                    self._fitted[key] = known + len(tokens)
                    tokens.append(geometry.tokens(*size))

    def _sized(self, place: int) -> list[tuple[tuple[int, int, int], SizedImage]]:
        """Each image of a sample with its file, height and width."""
        numbers = self._corpus.index.image_numbers(int(self._corpus.numbers[place]))
        return [
            ((int(self._files[number]), image.resized_height, image.resized_width), image)
            for number, image in zip(numbers, self._corpus.images(place), strict=True)
        ]

    def _keys(self, place: int) -> NDArray[np.int32]:
        encoded = self._corpus.encoded(place)
        keys = encoded.ids.astype(np.int32, copy=True)
        keys[encoded.slots] = [-1 - self._fitted[key] for key, _ in self._sized(place)]
        return keys


def _file_numbers(corpus: Corpus, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """(I,) number of the file of each image of the index: several data files may show the same one.

    With (I, 2) sizes that differ by what their sources ask, one file has as many numbers.
    """
    hashes = np.zeros(corpus.index.image_count, np.uint64)
    for start, locations in corpus.index.location_batches():
        found = [xxhash.xxh3_64_intdigest(location.encode("utf-8", "surrogatepass")) for location in locations]
        hashes[start : start + len(found)] = found
    hashes ^= (sizes[:, 0] << 32 | sizes[:, 1]).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    _, numbers = np.unique(hashes, return_inverse=True)
    return numbers.astype(np.int64)
