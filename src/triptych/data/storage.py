"""Open files where people keep them: local paths, and URLs through fsspec (``s3://``, ``gs://``, ``https://``, ...)."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
from collections.abc import Callable
from typing import IO, Any, cast

from triptych.errors import ConfigError

Stamp = tuple[int, int]
"""(size in bytes, version) of a file: its mtime in ns, or a number made of the ETag or date of a remote object."""

REMOTE_BLOCK = 32 * 1024
"""Bytes of one ranged read: the header of a picture of many megabytes costs one or two of them."""


def is_remote(path: str) -> bool:
    """Whether ``path`` is a URL that needs fsspec."""
    return "://" in path and not path.startswith("file://")


def absolute(path: str) -> str:
    """A path that means the same from every working folder; a URL already does.

    Not ``abspath``: that would take ``link/../a`` and ``a/`` for other files than the system does.
    """
    return path if is_remote(path) else os.path.join(os.getcwd(), path)


def join(root: str, name: str) -> str:
    """``name`` seen from the folder ``root``, either of which may be a URL."""
    if is_remote(name) or not is_remote(root):
        return os.path.join(root, name) if not is_remote(name) else name
    return f"{root.rstrip('/')}/{name.lstrip('/')}"


def parent(path: str) -> str:
    """The folder of a file."""
    return path.rpartition("/")[0] if is_remote(path) else os.path.dirname(path)


def open_binary(path: str) -> IO[bytes]:
    """Open a file for reading; remote ones are read in ranges of ``REMOTE_BLOCK``.

    Raises:
        OSError: if it cannot be opened.
    """
    if not is_remote(path):
        return open(path, "rb")
    filesystem, inner = _filesystem(path)
    opened = _remotely(path, lambda: filesystem.open(inner, "rb", block_size=REMOTE_BLOCK, cache_type="readahead"))
    return cast(IO[bytes], _RemoteFile(opened, path))


def stamp(path: str) -> Stamp | None:
    """Size and version of a file, None if there is none; tells whether it changed."""
    if not is_remote(path):
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return None
        return status.st_size, status.st_mtime_ns
    filesystem, inner = _filesystem(path)
    try:
        info = _remotely(path, lambda: filesystem.info(inner))
    except OSError:
        return None
    version = next((info[key] for key in ("ETag", "etag", "LastModified", "mtime", "updated") if info.get(key)), "")
    digest = hashlib.blake2b(str(version).encode(), digest_size=6).digest()
    return int(info.get("size") or 0), int.from_bytes(digest, "big")


def matching(pattern: str) -> list[str]:
    """Files and folders that a path, URL or glob names, sorted; empty if none.

    Raises:
        ConfigError: if a remote place cannot be asked.
    """
    if not is_remote(pattern):
        if "\0" in pattern:  # `glob` raises
            return []
        return [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
    if not any(character in pattern for character in "*["):
        return [pattern] if stamp(pattern) is not None else []
    filesystem, inner = _filesystem(pattern)
    try:
        found = _remotely(pattern, lambda: filesystem.glob(inner))
    except OSError as error:
        raise ConfigError(f"cannot list {pattern!r}: {error}") from error
    return sorted(str(filesystem.unstrip_protocol(name)) for name in found)


def _filesystem(path: str) -> tuple[Any, str]:
    import fsspec

    try:
        filesystem, inner = fsspec.core.url_to_fs(path)
    except ImportError as error:
        raise ConfigError(f"{path!r}: {error}; pip install 'triptych[remote]'") from error
    except ValueError as error:
        raise ConfigError(f"{path!r}: {error}") from error
    return filesystem, inner


def _remotely(path: str, call: Callable[[], Any]) -> Any:
    """Run one call to a remote place; its libraries raise what they like, callers here see OSError."""
    try:
        return call()
    except OSError:
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}", path) from error


class _RemoteFile:
    """A remote file whose read errors are OSError, whatever its library raises."""

    def __init__(self, file: Any, path: str) -> None:
        self._file = file
        self._path = path

    def read(self, size: int = -1) -> bytes:
        return cast(bytes, _remotely(self._path, lambda: self._file.read(size)))

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = 0) -> int:
        return cast(int, _remotely(self._path, lambda: self._file.seek(offset, whence)))

    def tell(self) -> int:
        return cast(int, self._file.tell())

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return True

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> _RemoteFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
