"""The same samples in every container: written once as JSON and image files, then as whatever a test asks for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tiny
from triptych.corpus.corpus import Corpus
from triptych.corpus.examine import CheckReport, Encoder
from triptych.corpus.execution.executor import LocalEngine
from triptych.corpus.loading import load_or_build
from triptych.family.family import read_model_files
from triptych.images.pixels import load_patches
from triptych.sources.records import Source
from triptych.text.layout import Budget


@dataclass
class Samples:
    """A dozen samples with 0 to 3 images each, as JSON beside their images."""

    path: Path
    encoder: Encoder
    records: list[dict[str, Any]]

    @property
    def folder(self) -> Path:
        return self.path.parent

    def content(self, name: str) -> bytes:
        """The bytes of an image."""
        return (self.folder / name).read_bytes()

    def load(self, cache: Path, *paths: Path, **source: Any) -> tuple[Corpus, CheckReport]:
        """The corpus of other files."""
        named = Source(tuple(map(str, paths)), **source)
        return load_or_build([named], self.encoder, cache, LocalEngine(1))

    def check_equal(self, cache: Path, *paths: Path, only: list[int] | None = None, **source: Any) -> Corpus:
        """That other files hold these samples (or ``only`` some): ids, layouts, images, read in any order."""
        expected, _ = self.load(cache, self.path)
        found, report = self.load(cache, *paths, **source)
        chosen = list(range(len(self.records))) if only is None else only
        assert report.problems == []
        assert (report.samples, len(found)) == (len(chosen), len(chosen))
        geometry = self.encoder.geometry
        for place in np.random.default_rng(0).permutation(len(chosen)).tolist():
            sample = chosen[place]
            for name in ("tokens", "patches"):
                assert getattr(found.lengths, name)[place] == getattr(expected.lengths, name)[sample]
            assert found.supervised[place] == expected.supervised[sample]
            assert found.task(place) == expected.task(sample)
            mine, theirs = found.layout(place), expected.layout(sample)
            for name in ("input_ids", "supervised", "position_ids", "grids"):
                assert np.array_equal(getattr(mine, name), getattr(theirs, name))
            pictures = zip(found.images(place), expected.images(sample), strict=True)
            for one, other in pictures:
                size = (other.height, other.width)
                resized = (other.resized_height, other.resized_width)
                assert (one.height, one.width, one.resized_height, one.resized_width) == (*size, *resized)
                patches = [load_patches(image.location, size, resized, geometry) for image in (one, other)]
                assert np.array_equal(*patches)
        return found


def write_samples(folder: Path, model: Path) -> Samples:
    files = read_model_files(str(model))
    path = tiny.write_dataset(folder, 12, max_images=3)
    records = json.loads(path.read_text(encoding="utf-8"))
    assert {len(record["images"]) for record in records} == {0, 1, 2, 3}
    return Samples(path, Encoder(files.template(), files.geometry, Budget(max_tokens=400)), records)
