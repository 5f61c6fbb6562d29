"""Checkpoints that are whole or absent: written aside, sealed with checksums, then renamed; verified before use.

output/.unfinished/checkpoint-7/...          while it is written
output/.unfinished/checkpoint-7/manifest.json   sizes and checksums of all files, written last
output/checkpoint-7                          renamed: whole
"""

from __future__ import annotations

import json
import os
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash

from triptych.errors import TriptychError

MANIFEST = "manifest.json"
UNFINISHED = ".unfinished"
"""Folder of the output in which checkpoints are written; what is in it at a start is of no use to anybody."""
CHUNK = 4 * 2**20
THREADS = 2
_NAME = re.compile(r"checkpoint-(\d+)")

FileSum = tuple[int, str]
"""Size in bytes and XXH3-128 of a file."""


class CheckpointError(TriptychError):
    """A checkpoint cannot be written or used."""


class Seal:
    """Checksums of the files of a folder, made by threads while further files are being written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pool = ThreadPoolExecutor(THREADS)
        self._sums: dict[str, Future[FileSum]] = {}

    def add(self) -> None:
        """Take every file that is new in the folder; it must be complete."""
        for name in _files(self.folder):
            if name not in self._sums:
                self._sums[name] = self._pool.submit(_settle, self.folder / name)

    def close(self) -> None:
        """Write the manifest, once every file is on the disk.

        Raises:
            OSError: if the disk fails.
        """
        try:
            self.add()
            sums = {name: found.result() for name, found in sorted(self._sums.items())}
        finally:
            self._pool.shutdown(cancel_futures=True)
        path = self.folder / MANIFEST
        path.write_text(json.dumps({"files": sums}, indent=1) + "\n", encoding="utf-8")
        _settle(path)
        for folder in {self.folder, *(path.parent for name in sums for path in [self.folder / name])}:
            _sync(folder)


def aside(output: Path, name: str) -> Path:
    """An empty folder to write ``name`` in, on the same disk as its place."""
    folder = output / UNFINISHED / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def publish(folder: Path, target: Path) -> None:
    """Give a sealed folder its name; what had the name before is gone.

    Raises:
        OSError: if the disk fails.
    """
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    folder.rename(target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def clear_unfinished(output: Path) -> None:
    """Remove what a killed run was writing."""
    shutil.rmtree(output / UNFINISHED, ignore_errors=True)


def found(output: Path) -> list[tuple[int, Path]]:
    """Step and folder of every checkpoint, the newest first, good or not."""
    names = ((_NAME.fullmatch(folder.name), folder) for folder in output.glob("checkpoint-*"))
    return sorted(((int(name[1]), folder) for name, folder in names if name), reverse=True)


def fault(folder: Path) -> str | None:
    """Why a folder is not what was written there; None if it is, to the last bit. Reads all of it."""
    if not folder.is_dir():
        return "not a folder"
    try:
        said: dict[str, FileSum] = {name: (size, total) for name, (size, total) in read_manifest(folder).items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return f"{MANIFEST} is {'damaged' if (folder / MANIFEST).exists() else 'missing'}"
    if not said:
        return f"{MANIFEST} names no file"
    there = set(_files(folder))
    for name in sorted(said.keys() - there):
        return f"{name} is missing"
    with ThreadPoolExecutor(THREADS) as pool:
        states = pool.map(lambda item: _state(folder / item[0], item[1]), said.items())
        for name, state in zip(said, states, strict=True):
            if state:
                return f"{name} {state}"
    return None


def last_good(output: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole, and a line about each newer one that is not."""
    faults: list[str] = []
    for _, folder in found(output):
        reason = fault(folder)
        if reason is None:
            return folder, faults
        faults.append(f"{folder}: {reason}")
    return None, faults


def how_to_go_on(output: Path) -> str:
    """Where a run can go on from, for an error: a clause of a sentence."""
    whole = [folder for _, folder in found(output) if (folder / MANIFEST).exists()]
    if whole:
        return f"then go on with --resume from the last checkpoint, {whole[0]}"
    return "then start again: there is no checkpoint yet"


def remove_old(output: Path, keep: int | None, best: Path | None) -> None:
    """Leave the ``keep`` newest checkpoints, and ``best``; None keeps all."""
    if keep is None:
        return
    for _, folder in found(output)[keep:]:
        if best is None or folder.name != best.name:
            _remove(folder)


def _remove(folder: Path) -> None:
    """A checkpoint is whole or absent, also while it is removed: it first leaves its place."""
    gone = folder.parent / UNFINISHED / f"{folder.name}.old"
    shutil.rmtree(gone, ignore_errors=True)
    with suppress(OSError):
        gone.parent.mkdir(exist_ok=True)
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Name -> [size, checksum].

    Raises:
        OSError, ValueError, KeyError: if it is missing or damaged.
    """
    files: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    return files


def step_of(checkpoint: Path) -> int:
    """Optimizer steps done at a checkpoint."""
    return int(checkpoint.name.rpartition("-")[2])


def _files(folder: Path) -> list[str]:
    """Names of all files below a folder, the manifest excepted."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name != MANIFEST)


def _state(path: Path, said: FileSum) -> str:
    size = path.stat().st_size
    if size != said[0]:
        return f"has {size:,} bytes instead of {said[0]:,}"
    try:
        return "" if _sum(path) == said else "is damaged: its checksum is not what was written"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _settle(path: Path) -> FileSum:
    """The file's sum, once it is on the disk."""
    _sync(path)
    return _sum(path)


def _sum(path: Path) -> FileSum:
    size, total = 0, xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            size += len(chunk)
            total.update(chunk)
    return size, total.hexdigest()


def _sync(path: Path) -> None:
    """Have the disk hold what was written to a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
