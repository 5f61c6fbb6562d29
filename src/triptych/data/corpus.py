"""The index on disk: every good sample's ids, image sizes and counts as memory-mapped Arrow columns."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from triptych.data import images
from triptych.data.conversation import ImageRef
from triptych.data.geometry import Geometry
from triptych.data.layout import Layout, lay_out
from triptych.data.plan import Lengths
from triptych.data.records import Source
from triptych.data.samples import Census, Examiner, Reading, Sample, SizedImage
from triptych.data.template import Encoded
from triptych.errors import Origin, Problem

FORMAT = 2
"""Raised when the columns or the meaning of one change: older indexes are then built anew."""

BATCH_ROWS = 4096

SCHEMA = pa.schema(
    [
        ("ids", pa.list_(pa.int32())),  # (U,) one id per image
        ("spans", pa.list_(pa.int32())),  # supervised [start, end) pairs among the U, flat
        ("slots", pa.list_(pa.int32())),  # (N,) index of each image among the U
        ("measured", pa.list_(pa.int32())),  # (N, 2) height, width of the file, px, flat
        ("resized", pa.list_(pa.int32())),  # (N, 2) height, width in the model, px, flat
        ("stamps", pa.list_(pa.int64())),  # (N, 2) bytes, mtime ns of the file, flat
        ("images", pa.list_(pa.large_string())),  # (N,) as the data names them
        ("media_root", pa.string()),
        ("tokens", pa.int64()),
        ("patches", pa.int64()),
        ("supervised", pa.int64()),
        ("path", pa.string()),
        ("line", pa.int64()),
        ("task", pa.string()),
    ]
)


class Corpus:
    """The good samples of a run, K of them, read from disk as they are asked for."""

    def __init__(self, path: Path) -> None:
        """Memory-map the index at ``path``; costs no memory per sample."""
        self.path = path
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            self._table = reader.read_all()
        metadata = self._table.schema.metadata or {}
        self.key = metadata[b"key"].decode()
        self.geometry = Geometry(**json.loads(metadata[b"geometry"]))

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}  # a worker maps the file itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    @cached_property
    def lengths(self) -> Lengths:
        return Lengths(self._numbers("tokens"), self._numbers("patches"))

    @cached_property
    def supervised(self) -> NDArray[np.int64]:
        """(K,) supervised tokens"""
        return self._numbers("supervised")

    def origin(self, index: int) -> Origin:
        return Origin(self._value("path", index), self._value("line", index))

    def task(self, index: int) -> str | None:
        task: str | None = self._value("task", index)
        return task

    def encoded(self, index: int) -> Encoded:
        """The sample's ids with one per image."""
        ids = self._integers("ids", index)
        supervised = np.zeros(len(ids), np.bool_)
        for start, end in self._pairs("spans", index):
            supervised[start:end] = True
        return Encoded(ids, supervised, self._integers("slots", index))

    def layout(self, index: int) -> Layout:
        """The sample as the model sees it."""
        return lay_out(self.encoded(index), self._pairs("resized", index), self.geometry, self.origin(index))

    def images(self, index: int) -> list[SizedImage]:
        """The sample's images in reading order."""
        root = self._value("media_root", index)
        names = self._value("images", index)
        sizes = zip(self._pairs("measured", index), self._pairs("resized", index), strict=True)
        return [
            SizedImage(ImageRef(name), root, *measured, *resized)
            for name, (measured, resized) in zip(names, sizes, strict=True)
        ]

    def is_current(self) -> bool:
        """Whether every image file is as it was when it was measured."""
        seen: set[str] = set()
        for index in range(len(self)):
            root = self._value("media_root", index)
            for name, expected in zip(self._value("images", index), self._pairs("stamps", index), strict=True):
                location = images.locate(ImageRef(name), root, confine=False)
                if location in seen:
                    continue
                seen.add(location)
                if images.stamp(location) != expected:
                    return False
        return True

    def _value(self, column: str, index: int) -> Any:
        return self._table.column(column)[index].as_py()

    def _numbers(self, column: str) -> NDArray[np.int64]:
        return np.asarray(self._table.column(column).to_numpy(), np.int64)

    def _integers(self, column: str, index: int) -> NDArray[Any]:
        values: NDArray[Any] = self._table.column(column)[index].values.to_numpy()
        return values

    def _pairs(self, column: str, index: int) -> list[tuple[int, int]]:
        flat = self._integers(column, index).tolist()
        return list(zip(flat[::2], flat[1::2], strict=True))


def load_or_build(
    sources: Sequence[Source],
    reading: Reading,
    identity: str,
    folder: Path,
    on_sample: Callable[[Census], None] = lambda _: None,
) -> tuple[Corpus, Census]:
    """The index of ``sources``, from ``folder`` if nothing changed, else built there.

    Args:
        sources: the data files.
        reading: how the model reads samples.
        identity: what else decides the ids, for example a hash of the tokenizer file.
        folder: where indexes are kept; made if missing.
        on_sample: called after every record, for a progress bar.

    Returns:
        The corpus of the good samples and the census of all. Problems are in the census; whether they end the run is
        the caller's decision.

    Raises:
        ConfigError: if a data file is missing or cannot be read.
    """
    key = corpus_key(sources, reading, identity)
    folder.mkdir(parents=True, exist_ok=True)
    path, census_path = folder / f"{key}.arrow", folder / f"{key}.json"
    if path.exists() and census_path.exists():
        corpus, census = Corpus(path), _read_census(census_path)
        if corpus.is_current() and all(images.stamp(name) == stamp for name, stamp in census.failed.items()):
            return corpus, census
    examiner = Examiner(reading)
    _write(path, key, reading.geometry, _samples(examiner, sources, on_sample))
    _write_census(census_path, examiner.census)
    return Corpus(path), examiner.census


def corpus_key(sources: Sequence[Source], reading: Reading, identity: str) -> str:
    """Name of an index: a hash of the data files (path, size, mtime) and of everything that decides the lengths."""
    files = [
        (os.path.abspath(path), images.stamp(path), os.path.abspath(source.media_root(path)), source.confine)
        for source in sources
        for path in source.files()
    ]
    naming = [(sorted(source.columns.items()), sorted(source.tags.items())) for source in sources]
    rules = (asdict(reading.geometry), asdict(reading.budget), reading.template.default_system)
    described = json.dumps([FORMAT, identity, files, naming, rules])
    return hashlib.sha256(described.encode()).hexdigest()[:20]


def _samples(examiner: Examiner, sources: Sequence[Source], on_sample: Callable[[Census], None]) -> Iterator[Sample]:
    for _, sample in examiner.run(sources):
        on_sample(examiner.census)
        if sample is not None:
            yield sample


def _columns(sample: Sample, geometry: Geometry) -> dict[str, Any]:
    fitted, conversation = sample.fitted, sample.conversation
    assert fitted is not None, "an index is built with a model"
    encoded = fitted.encoded
    edges = np.flatnonzero(np.diff(np.concatenate(([0], encoded.supervised.view(np.int8), [0]))))
    image_tokens = sum(geometry.tokens(*size) for size in fitted.resized)
    return {
        "ids": encoded.ids,
        "spans": edges,
        "slots": encoded.slots,
        "measured": [side for image in sample.measured for side in (image.height, image.width)],
        "resized": [side for size in fitted.resized for side in size],
        "stamps": [part for image in sample.measured for part in image.stamp],
        "images": [ref.source for ref in conversation.images],
        "media_root": os.path.abspath(sample.media_root),
        "tokens": len(encoded.ids) - len(fitted.resized) + image_tokens,
        "patches": image_tokens * geometry.merge_size**2,
        "supervised": int(encoded.supervised.sum()),
        "path": conversation.origin.path,
        "line": conversation.origin.line,
        "task": conversation.task,
    }


def _write(path: Path, key: str, geometry: Geometry, samples: Iterator[Sample]) -> None:
    metadata = {"key": key, "geometry": json.dumps(asdict(geometry))}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".building-", suffix=".arrow")
    os.close(handle)
    try:
        with pa.OSFile(temporary, "wb") as sink, pa.ipc.new_file(sink, SCHEMA.with_metadata(metadata)) as writer:
            while rows := [_columns(sample, geometry) for sample in islice(samples, BATCH_ROWS)]:
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
        os.replace(temporary, path)  # an index is whole or absent, also after a kill
    except BaseException:
        os.unlink(temporary)
        raise


def _write_census(path: Path, census: Census) -> None:
    content = asdict(census)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".building-", suffix=".json")
    with os.fdopen(handle, "w") as file:
        json.dump(content, file)
    os.replace(temporary, path)


def _read_census(path: Path) -> Census:
    content = json.loads(path.read_text())
    for name in ("problems", "dropped"):
        content[name] = [Problem(**{**item, "origin": Origin(**item["origin"])}) for item in content[name]]
    content["failed"] = {name: stamp and tuple(stamp) for name, stamp in content["failed"].items()}
    return Census(**content)
