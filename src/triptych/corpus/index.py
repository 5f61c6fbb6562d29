"""The index on disk: for each data file, the text of every readable record and the table of its images, in Arrow.

It depends on the data files, the tokenizer and the markup; neither on pixel limits nor on what the images hold. So
other limits, or a fixed image, leave it as it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock
from numpy.typing import NDArray

from triptych.corpus.examine import Examiner, Task
from triptych.corpus.execution.executor import Engine
from triptych.corpus.execution.progress import Progress
from triptych.corpus.index_writer import ABOUT, FILES, IMAGE_TABLE, SAMPLES, PartWriter
from triptych.errors import Origin, Problem
from triptych.images.cache_files import intact, mark_used
from triptych.images.geometry import Limits
from triptych.sources import readers, storage
from triptych.sources.records import ImageLimits, Source
from triptych.text.template import Template

FORMAT = 16
"""Raised when the columns or the meaning of one change: older indexes are then built again."""


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
        self.problems: list[tuple[list[int], dict[str, Any]]] = about["problems"]
        """As ``PartWriter`` wrote them."""
        self.samples = _map(folder / SAMPLES)
        self.images = _map(folder / IMAGE_TABLE)


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
    def sample_count(self) -> int:
        """S"""
        return int(self._starts[-1])

    @property
    def records(self) -> int:
        """Records seen, good or not."""
        return sum(part.records for part in self._parts)

    @cached_property
    def problems(self) -> list[tuple[int, Problem]]:
        """(number of the data file, problem) of records that do not read, in input order; images are not known here."""
        return [
            (number, Problem(origin=Origin(file.path, *place), **found))
            for number, (file, part) in enumerate(zip(self.files, self._parts, strict=True))
            for place, found in part.problems
        ]

    def file_of(self, sample: int) -> int:
        """Number of the data file that a sample stands in."""
        return int(np.searchsorted(self._starts, sample, side="right")) - 1

    def origin(self, sample: int) -> Origin:
        """Where a sample came from."""
        place = (self.value(name, sample).as_py() for name in ("line", "at", "item"))
        return Origin(self.files[self.file_of(sample)].path, *place)

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

    def image_limits(self, number: int, of_sources: Limits) -> ImageLimits | None:
        """What is asked of an image's size by its record and its source, of which ``of_sources`` has one each."""
        file = int(np.searchsorted(self._image_starts, number, side="right")) - 1
        values = self._parts[file].images.column("limits")[number - int(self._image_starts[file])].as_py()
        wider = of_sources[self.files[file].source]
        return ImageLimits(*values).over(wider) if values else wider

    def limit_kinds(self, of_sources: Limits) -> tuple[NDArray[np.int32], list[ImageLimits | None]]:
        """(I,) number of what is asked of each image, and what these numbers stand for."""
        kinds: dict[ImageLimits | None, int] = {None: 0}
        numbers = np.zeros(self.image_count, np.int32)
        for file, part in enumerate(self._parts):
            start, wider = int(self._image_starts[file]), of_sources[self.files[file].source]
            numbers[start : start + part.images.num_rows] = kinds.setdefault(wider, len(kinds))
            for batch in part.images.select(["limits"]).to_batches():
                column = batch.column(0)
                for place in np.flatnonzero(np.diff(column.offsets.to_numpy())).tolist():
                    own = ImageLimits(*column[place].as_py()).over(wider)
                    numbers[start + place] = kinds.setdefault(own, len(kinds))
                start += len(batch)
        return numbers, list(kinds)

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
    broken = {target for target in folders if target.exists() and not intact(target / name for name in FILES)}
    if broken or not all(target.exists() for target in folders):
        names = "".join(target.name for target in folders)
        lock = folder / f"{hashlib.sha256(names.encode()).hexdigest()[:20]}.lock"
        with FileLock(lock):
            for target in broken:
                shutil.rmtree(target, ignore_errors=True)
            _build(list(zip(files, folders, strict=True)), Examiner(sources, template), lock, engine, progress)
    mark_used(target / ABOUT for target in set(folders))
    return Index(files, folders)


def _part_key(source: Source, path: str, template: Template | None, identity: str) -> str:
    """Name of a part: a hash of the data file (path, size, mtime) and of everything that decides the ids."""
    root = source.media_root(path)
    tar = root.lower().endswith(".tar") and (source.allow_remote or not storage.is_remote(root))
    described = [
        FORMAT,
        identity,
        template is not None and repr(template.style),
        _canonical(path),
        storage.stamp(path),
        _canonical(root),
        storage.stamp(root) if tar else None,
        source.confine,
        source.allow_remote,
        source.allow_private,
        sorted(source.columns.items()),
        sorted(source.tags.items()),
        [source.mark, source.marks, source.roles, sorted((source.choice or {"": None}).items()), sorted(source.ignore)],
        [source.supervise, source.system],
    ]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:20]


def _canonical(path: str) -> str:
    return path if storage.is_remote(path) else os.path.abspath(path)


def _build(
    parts: Sequence[tuple[DataFile, Path]], examiner: Examiner, lock: Path, engine: Engine, progress: Progress
) -> None:
    """Build the parts that are missing, all at once, each put in place as it is finished."""
    files, folders = [file for file, _ in parts], [folder for _, folder in parts]
    for left in lock.parent.glob(f".{lock.stem}-*"):  # of a build that was killed: its lock is ours now
        shutil.rmtree(left, ignore_errors=True)
    missing = [number for number, target in enumerate(folders) if not target.exists()]
    missing = list({folders[number]: number for number in reversed(missing)}.values())[::-1]
    progress.phase("reading", sum((storage.stamp(files[number].path) or (0, 0))[0] for number in missing), "bytes")
    building = Path(tempfile.mkdtemp(prefix=f".{lock.stem}-", dir=lock.parent))
    waiting = list(missing)
    writer: PartWriter | None = None

    def finish(up_to: int | None) -> None:
        """Put in place what is complete: files come in order, and one may hold no shard."""
        nonlocal writer
        while waiting and waiting[0] != up_to:
            done = writer or PartWriter(building, progress)
            done.close()
            _put_in_place(done.folder, folders[waiting.pop(0)])
            writer = None

    try:
        tasks = (
            Task(files[number].source, number, shard) for number in missing for shard in readers.cut(files[number].path)
        )
        for examined in engine.map(examiner, tasks):
            finish(examined.task.file)
            writer = writer or PartWriter(building, progress)
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
