"""Files of the cache: where they are, and whether they are still what was written.

Each file has a small one beside it, ``NAME.sum``, with its size and CRC-32. A file that does not fit is built again: a
single wrong byte in a column of lengths would otherwise become a plan.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SUM = ".sum"
CHUNK = 1 << 20
STALE_SECONDS = 24 * 3600
"""Age at which a half-written file is nobody's any more."""

logger = logging.getLogger("triptych")


def cache_folder() -> Path:
    """Where caches are kept: ``$TRIPTYCH_CACHE``, else ``triptych`` in the user's cache folder."""
    named = os.environ.get("TRIPTYCH_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "triptych"


def seal(path: Path) -> None:
    """Write the checksum of a file beside it; the file is complete."""
    size, crc = _measure(path)
    path.with_name(path.name + SUM).write_text(json.dumps({"size": size, "crc32": crc}), encoding="utf-8")


def intact(paths: Iterable[Path]) -> bool:
    """Whether all of these files are what was written. Of the first that is not, one line is logged."""
    for path in paths:
        try:
            said = json.loads(path.with_name(path.name + SUM).read_text(encoding="utf-8"))
            found = _measure(path)
            good = (said["size"], said["crc32"]) == found
        except (OSError, ValueError, KeyError, TypeError):
            good = False
        if not good:
            logger.warning("the cache file %r is damaged or incomplete: building it again", str(path))
            return False
    return True


@contextmanager
def replacing(path: Path) -> Iterator[str]:
    """A temporary name that takes the place of ``path`` at the end: a file is whole or absent, also after a kill."""
    for left in path.parent.glob(".writing-*"):  # by a process that was killed
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                left.unlink()
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    os.close(handle)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def mark_used(paths: Iterable[Path]) -> None:
    """Note that these files were used now, for ``triptych cache --prune``."""
    for path in paths:
        with suppress(OSError):  # a cache that others own may be read-only
            os.utime(path)


def row_sum(values: Iterable[object]) -> int:
    """CRC-32 of the values of one row, to be stored with it."""
    return zlib.crc32(json.dumps(list(values)).encode())


def _measure(path: Path) -> tuple[int, int]:
    size, crc = 0, 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return size, crc
