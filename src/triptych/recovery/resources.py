"""Disks and memory that run out, or cannot be used: one sentence with the path, the size and what to do."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from triptych.errors import TriptychError
from triptych.images.cache_files import cache_folder
from triptych.recovery import checkpoints

REASONS = {
    errno.ENOSPC: "no space is left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than the limit on files allows",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "there is no permission to write",
    errno.EPERM: "there is no permission to write",
    errno.ENOTDIR: "a file is where a folder should be",
    errno.EEXIST: "a file is where a folder should be",
    errno.EISDIR: "a folder is where a file should be",
    errno.EIO: "the disk reports an error",
}
SAID = {
    "No space left on device": errno.ENOSPC,
    "os error 28": errno.ENOSPC,
    "database or disk is full": errno.ENOSPC,
    "File too large": errno.EFBIG,
    "os error 27": errno.EFBIG,
    "disk I/O error": errno.EIO,
    "Read-only file system": errno.EROFS,
    "os error 30": errno.EROFS,
    "attempt to write a readonly database": errno.EROFS,
    "unable to open database file": errno.EACCES,
    "Permission denied": errno.EACCES,
    "PytorchStreamWriter failed": errno.ENOSPC,
    "unexpected pos": errno.ENOSPC,
}
"""What libraries say that give no number."""
NO_TEMPORARY = "No usable temporary directory"


class ResourceError(TriptychError):
    """A disk or the memory is full, or cannot be used."""


@contextmanager
def explained(output: Path) -> Iterator[None]:
    """Turn errors of disk and memory into sentences; every other error goes on as it is.

    Raises:
        ResourceError: for a disk or memory that is full, or cannot be used.
    """
    try:
        yield
    except TriptychError:
        raise
    except Exception as error:
        text = explain(error, output)
        if text is None:
            raise
        raise ResourceError(text) from error


def explain(error: BaseException, output: Path, place: Path | None = None, needed: int | None = None) -> str | None:
    """What an error of disk or memory means; None for any other one.

    Args:
        error: as it was raised.
        output: of the run.
        place: where it was written to, where the error does not say.
        needed: bytes that were to be written, where that is known.
    """
    if out_of_memory(error):
        return (
            "out of memory: set train.gradient_checkpointing: true, lower data.workers and data.prefetch_mb, or take "
            f"smaller rows (`triptych plan` shows what each setting saves); {checkpoints.how_to_go_on(output)}"
        )
    for found in chain(error):
        if NO_TEMPORARY in str(found):
            return f"no temporary folder can be written ({found}); set TMPDIR to one that can"
        number = _number(found)
        if number is not None:
            path = Path(str(found.filename)) if isinstance(found, OSError) and found.filename else place
            return _sentence(number, path or _fullest(output), output, needed)
    return None


def out_of_memory(error: BaseException) -> bool:
    """Whether memory of the host or of a device ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what caused it."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno in REASONS:
        return error.errno
    return next((number for text, number in SAID.items() if text in str(error)), None)


def _sentence(number: int, path: Path, output: Path, needed: int | None) -> str:
    room = ""
    if number in (errno.ENOSPC, errno.EDQUOT):
        room = f" ({megabytes(_free(path))} free" + (f", about {megabytes(needed)} needed)" if needed else ")")
    elif needed and number == errno.EFBIG:
        room = f" (about {megabytes(needed)} needed)"
    return f"{path}: {REASONS[number]}{room}; {_remedy(path, output)}, {checkpoints.how_to_go_on(output)}"


def _remedy(path: Path, output: Path) -> str:
    """What to do about a path, by the folder that it is in."""
    for folder, remedy in (
        (cache_folder(), "clear it (`triptych cache --prune 0`) or set TRIPTYCH_CACHE to another folder"),
        (output, "make room there or choose another `output`"),
        (Path(tempfile.gettempdir()), "make room there or set TMPDIR to another folder"),
    ):
        if Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder)):
            return remedy
    return "make it usable"


def _free(path: Path) -> int:
    existing = next(folder for folder in (path, *Path(os.path.abspath(path)).parents) if folder.exists())
    return shutil.disk_usage(existing).free


def _fullest(output: Path) -> Path:
    """Of the folders that a run writes to, the one with the least room."""
    return min((output, cache_folder()), key=_free)


def megabytes(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
