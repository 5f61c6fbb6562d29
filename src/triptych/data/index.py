"""The index on disk: for each data file, the text of every readable record and the table of its images, in Arrow.

It depends on the data files, the tokenizer and the markup; neither on pixel limits nor on what the images hold. So
other limits, or a mended image, leave it as it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from filelock import FileLock
from numpy.typing import NDArray

from triptych.data import records, storage
from triptych.data.engine import Engine
from triptych.data.records import Source
from triptych.data.samples import DIGEST, SCHEMA, Examined, Examiner, Task
from triptych.data.template import Template
from triptych.errors import Origin, Problem

FORMAT = 3
"""Raised when the columns or the meaning of one change: older indexes are then built anew."""

IMAGES = pa.schema(
    [
        ("name", pa.large_string()),  # as the data names it
        ("location", pa.large_string()),  # as `images.open_bytes` takes it
        ("first", pa.int64()),  # the first sample that uses it
    ]
)
ABOUT = "about.json"
BATCH_ROWS = 4096
"""Rows of a record batch, whatever the shards were: an index does not show how it was built."""


class Progress(Protocol):
    """Who watches an examination."""

    def phase(self, description: str, total: int, unit: str) -> None:
        """A new kind of work begins: ``total`` bytes or images."""

    def advance(self, done: int) -> None:
        """So much of it is done."""

    def found(self, problem: Problem) -> None:
        """A problem, as soon as it is known; what an image causes is told once, at its first sample."""


class Silent:
    """Nobody watches."""

    def phase(self, description: str, total: int, unit: str) -> None:
        """See ``Progress``."""

    def advance(self, done: int) -> None:
        """See ``Progress``."""

    def found(self, problem: Problem) -> None:
        """See ``Progress``."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """One data file of a run."""

    source: int
    """Number of its source."""
    path: str


class Part:
    """What is indexed of one data file."""

    def __init__(self, folder: Path) -> None:
        """Memory-map it; costs no memory per sample."""
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        self.records: int = about["records"]
        """Records seen, good or not."""
        self.problems = [(item["line"], item["code"], item["message"], item["turn"]) for item in about["problems"]]
        self.samples = _map(folder / "samples.arrow")
        self.images = _map(folder / "images.arrow")


def _map(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


class Index:
    """All data files of a run, one after the other: S samples, I images (distinct within a file)."""

    def __init__(self, files: Sequence[DataFile], folders: Sequence[Path]) -> None:
        self.files = list(files)
        self.folders = list(folders)
        opened = {folder: Part(folder) for folder in dict.fromkeys(folders)}
        self._parts = [opened[folder] for folder in folders]
        self._starts = np.cumsum([0, *(part.samples.num_rows for part in self._parts)])
        self._image_starts = np.cumsum([0, *(part.images.num_rows for part in self._parts)])

    @property
    def image_count(self) -> int:
        """I"""
        return int(self._image_starts[-1])

    @property
    def records(self) -> int:
        """Records seen, good or not."""
        return sum(part.records for part in self._parts)

    @cached_property
    def problems(self) -> list[tuple[int, Problem]]:
        """(number of the data file, problem) of records that do not read, in input order; images are not known here."""
        return [
            (number, Problem(code, Origin(file.path, line), message, turn=turn))
            for number, (file, part) in enumerate(zip(self.files, self._parts, strict=True))
            for line, code, message, turn in part.problems
        ]

    def file_of(self, sample: int) -> int:
        """Number of the data file that a sample stands in."""
        return int(np.searchsorted(self._starts, sample, side="right")) - 1

    def origin(self, sample: int) -> Origin:
        """Where a sample came from."""
        return Origin(self.files[self.file_of(sample)].path, self.value("line", sample).as_py())

    def value(self, column: str, sample: int) -> pa.Scalar:
        """One cell of ``SCHEMA``; images are numbered within the file, see ``image_numbers``."""
        file = self.file_of(sample)
        return self._parts[file].samples.column(column)[sample - int(self._starts[file])]

    def image_numbers(self, sample: int) -> list[int]:
        """The images of a sample in reading order, numbered over the whole index."""
        start = int(self._image_starts[self.file_of(sample)])
        return [start + number for number in self.value("images", sample).as_py()]

    def image(self, number: int) -> tuple[str, str]:
        """(name, location) of an image."""
        file = int(np.searchsorted(self._image_starts, number, side="right")) - 1
        table, row = self._parts[file].images, number - int(self._image_starts[file])
        return table.column("name")[row].as_py(), table.column("location")[row].as_py()

    def first_user(self, number: int) -> int:
        """The first sample that uses an image."""
        file = int(np.searchsorted(self._image_starts, number, side="right")) - 1
        first: int = self._parts[file].images.column("first")[number - int(self._image_starts[file])].as_py()
        return int(self._starts[file]) + first

    def sample_batches(self, *columns: str) -> Iterator[tuple[int, int, int, list[Any]]]:
        """(first sample, number of the data file, first image of the file, columns) piece by piece."""
        for file, part in enumerate(self._parts):
            start = int(self._starts[file])
            for batch in part.samples.select(list(columns)).to_batches():
                yield start, file, int(self._image_starts[file]), [batch.column(name) for name in columns]
                start += len(batch)

    def location_batches(self) -> Iterator[tuple[int, list[str]]]:
        """(first image, locations) piece by piece."""
        for file, part in enumerate(self._parts):
            start = int(self._image_starts[file])
            for batch in part.images.select(["location"]).to_batches():
                yield start, batch.column(0).to_pylist()
                start += len(batch)


def load_or_build_index(
    sources: Sequence[Source],
    template: Template | None,
    identity: str,
    folder: Path,
    engine: Engine,
    progress: Progress,
) -> Index:
    """The index of ``sources``: data files that did not change come from ``folder``, the others are read.

    Whoever comes second while one is being built waits and takes it. A part is whole or absent, also after a kill.

    Args:
        sources: the data files.
        template: the model's markup; None for an index without ids.
        identity: what else decides the ids, for example a hash of the tokenizer file.
        folder: where indexes are kept; made if missing.
        engine: where the work is done.
        progress: who is told.

    Raises:
        ConfigError: if a data file is missing or cannot be read.
    """
    files = [DataFile(number, path) for number, source in enumerate(sources) for path in source.files()]
    folders = [folder / _part_key(sources[file.source], file.path, template, identity) for file in files]
    folder.mkdir(parents=True, exist_ok=True)
    if not all(target.exists() for target in folders):
        names = "".join(target.name for target in folders)
        lock = folder / f"{hashlib.sha256(names.encode()).hexdigest()[:20]}.lock"
        with FileLock(lock):
            _build(sources, files, folders, template, lock, engine, progress)
    return Index(files, folders)


def _part_key(source: Source, path: str, template: Template | None, identity: str) -> str:
    """Name of a part: a hash of the data file (path, size, mtime) and of everything that decides the ids."""
    root = source.media_root(path)
    tar = root.endswith(".tar") and (source.allow_remote or not storage.is_remote(root))
    described = [
        FORMAT,
        identity,
        template is not None and template.default_system,
        _canonical(path),
        storage.stamp(path),
        _canonical(root),
        storage.stamp(root) if tar else None,
        source.confine,
        source.allow_remote,
        sorted(source.columns.items()),
        sorted(source.tags.items()),
    ]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:20]


def _canonical(path: str) -> str:
    return path if storage.is_remote(path) else os.path.abspath(path)


def _build(
    sources: Sequence[Source],
    files: Sequence[DataFile],
    folders: Sequence[Path],
    template: Template | None,
    lock: Path,
    engine: Engine,
    progress: Progress,
) -> None:
    """Build the parts that are missing, all at once, each put in place as it is finished."""
    for left in lock.parent.glob(f".{lock.stem}-*"):  # of a build that was killed: its lock is ours now
        shutil.rmtree(left, ignore_errors=True)
    missing = [number for number, target in enumerate(folders) if not target.exists()]
    missing = list({folders[number]: number for number in reversed(missing)}.values())[::-1]
    progress.phase("reading", sum((storage.stamp(files[number].path) or (0, 0))[0] for number in missing), "bytes")
    building = Path(tempfile.mkdtemp(prefix=f".{lock.stem}-", dir=lock.parent))
    waiting = list(missing)
    writer: _Writer | None = None

    def finish(up_to: int | None) -> None:
        """Put in place what is complete: files come in order, and one may hold no shard."""
        nonlocal writer
        while waiting and waiting[0] != up_to:
            done = writer or _Writer(building, files[waiting[0]].path, progress)
            done.close()
            _put_in_place(done.folder, folders[waiting.pop(0)])
            writer = None

    try:
        tasks = (
            Task(files[number].source, number, shard) for number in missing for shard in records.cut(files[number].path)
        )
        for examined in engine.map(Examiner(sources, template), tasks):
            finish(examined.task.file)
            writer = writer or _Writer(building, files[examined.task.file].path, progress)
            writer.add(examined)
        finish(None)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _put_in_place(built: Path, target: Path) -> None:
    try:
        built.rename(target)
    except OSError:
        if not target.exists():  # else another run has built the same
            raise


class _Writer:
    """Puts the shards of a file together in order: lines of the file, numbers of its images."""

    def __init__(self, building: Path, path: str, progress: Progress) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=building))
        self._path = path
        self._progress = progress
        self._samples = _Batches(self.folder / "samples.arrow", SCHEMA)
        self._images = _Batches(self.folder / "images.arrow", IMAGES)
        self._numbering = _Numbering()
        self._base = 0
        self._count = 0
        self._records = 0
        self._problems: list[dict[str, Any]] = []

    def close(self) -> None:
        """Write what is left, and the counts last."""
        self._samples.close()
        self._images.close()
        about = {"records": self._records, "problems": self._problems}
        (self.folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")

    def add(self, examined: Examined) -> None:
        """The next shard."""
        for problem in examined.problems:
            shifted = records.shifted(problem.origin, self._base)
            self._progress.found(replace(problem, origin=shifted))
            found = {"line": shifted.line, "code": problem.code, "message": problem.message, "turn": problem.turn}
            self._problems.append(found)
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
