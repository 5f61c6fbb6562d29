"""Write one part of an index: shards in, Arrow files out, the same however the data file was cut."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from triptych.corpus.examine import DIGEST, SCHEMA, Examined
from triptych.corpus.execution.progress import Progress
from triptych.images.cache_files import seal
from triptych.sources import records

IMAGES = pa.schema(
    [
        ("name", pa.large_string()),  # as the data names it
        ("location", pa.large_string()),  # as `images.open_bytes` takes it
        ("first", pa.int64()),  # the first sample that uses it
        ("limits", pa.list_(pa.int32())),  # what a record asks of its size, as `ImageLimits`; empty where nothing is
    ]
)
ABOUT = "about.json"
SAMPLES, IMAGE_TABLE = "samples.arrow", "images.arrow"
FILES = (SAMPLES, IMAGE_TABLE, ABOUT)
"""Of a part; each has its checksum beside it."""
BATCH_ROWS = 4096
"""Rows of a record batch, whatever the shards were: an index does not show how it was built."""


class PartWriter:
    """Puts the shards of a file together in order: lines of the file, numbers of its images."""

    def __init__(self, building: Path, progress: Progress) -> None:
        """
        Args:
            building: folder to make the part's own in.
            progress: who is told.
        """
        self.folder = Path(tempfile.mkdtemp(dir=building))
        self._progress = progress
        self._samples = _Batches(self.folder / SAMPLES, SCHEMA)
        self._images = _Batches(self.folder / IMAGE_TABLE, IMAGES)
        self._numbering = _Numbering()
        self._base = 0
        self._count = 0
        self._records = 0
        self._problems: list[tuple[tuple[int, int, int], dict[str, Any]]] = []

    def close(self) -> None:
        """Write what is left, and the counts last."""
        self._samples.close()
        self._images.close()
        about = {"records": self._records, "problems": self._problems}
        (self.folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")
        for name in FILES:
            seal(self.folder / name)

    def add(self, examined: Examined) -> None:
        """The next shard."""
        for problem in examined.problems:
            shifted = records.shifted(problem.origin, self._base)
            self._progress.found(replace(problem, origin=shifted))
            found = {name: getattr(problem, name) for name in ("code", "message", "turn", "image")}
            self._problems.append(((shifted.line, shifted.at, shifted.item), found))
        samples = examined.samples
        numbers, new = self._numbering.number(np.frombuffer(examined.digests, f"S{DIGEST}"))
        local = samples.column("images")
        flat = local.values.to_numpy()
        self._add_images(examined, new, flat, local.offsets.to_numpy())
        columns = {name: samples.column(name) for name in SCHEMA.names}
        columns["images"] = pa.ListArray.from_arrays(local.offsets, pa.array(numbers[flat], pa.int64()))
        columns["line"] = pa.array(columns["line"].to_numpy() + self._base)
        self._samples.add(pa.RecordBatch.from_arrays(list(columns.values()), schema=SCHEMA))
        self._base += examined.count
        self._count += len(samples)
        self._records += examined.records
        self._progress.advance(examined.task.shard.weight)

    def _add_images(
        self, examined: Examined, new: list[int], flat: NDArray[np.int64], offsets: NDArray[np.int32]
    ) -> None:
        users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)) + self._count
        first = np.zeros(len(examined.names), np.int64)
        first[flat[::-1]] = users[::-1]  # written backwards, the first user of each is what stays
        columns = [
            pa.array([examined.names[place] for place in new], pa.large_string()),
            pa.array([examined.locations[place] for place in new], pa.large_string()),
            pa.array(first[new], pa.int64()),
            pa.array([examined.limits[place] for place in new], pa.list_(pa.int32())),
        ]
        self._images.add(pa.RecordBatch.from_arrays(columns, schema=IMAGES))


class _Batches:
    """An Arrow file whose record batches have ``BATCH_ROWS`` rows, whatever comes in."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._sink, schema)
        self._schema = schema
        self._waiting: list[pa.RecordBatch] = []

    def add(self, batch: pa.RecordBatch) -> None:
        self._waiting.append(batch)
        while sum(map(len, self._waiting)) >= BATCH_ROWS:
            self._write(BATCH_ROWS)

    def close(self) -> None:
        rows = sum(map(len, self._waiting))
        if rows:
            self._write(rows)
        self._writer.close()
        self._sink.close()

    def _write(self, rows: int) -> None:
        table = pa.Table.from_batches(self._waiting, self._schema)
        # A file of few, even batches reads well from any place; `combine_chunks` also drops what slices leave behind.
        for batch in table.slice(0, rows).combine_chunks().to_batches():
            self._writer.write_batch(batch)
        self._waiting = table.slice(rows).to_batches()


class _Numbering:
    """Numbers images in order of first appearance by their hashes, in sorted arrays: 24 bytes an image."""

    def __init__(self) -> None:
        self._runs: list[tuple[NDArray[np.bytes_], NDArray[np.int64]]] = []
        self._count = 0

    def number(self, digests: NDArray[np.bytes_]) -> tuple[NDArray[np.int64], list[int]]:
        """(number of each image, places of those not seen before); the digests are distinct."""
        numbers = np.full(len(digests), -1, np.int64)
        for keys, known in self._runs:
            places = np.minimum(np.searchsorted(keys, digests), len(keys) - 1)
            hit = keys[places] == digests
            numbers[hit] = known[places[hit]]
        new = np.flatnonzero(numbers < 0)
        if len(new):
            numbers[new] = np.arange(self._count, self._count + len(new))
            self._count += len(new)
            self._insert(digests[new], numbers[new])
        return numbers, new.tolist()

    def _insert(self, keys: NDArray[np.bytes_], numbers: NDArray[np.int64]) -> None:
        """Runs at least double in size from the last to the first, so there are few of them."""
        while self._runs and len(self._runs[-1][0]) < 2 * len(keys):
            other_keys, other_numbers = self._runs.pop()
            keys, numbers = np.concatenate((other_keys, keys)), np.concatenate((other_numbers, numbers))
        order = np.argsort(keys)
        self._runs.append((keys[order], numbers[order]))
