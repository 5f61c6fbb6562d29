"""Open files where people keep them: local paths, and URLs through fsspec (``s3://``, ``gs://``, ``https://``, ...)."""

from __future__ import annotations

import errno
import glob
import hashlib
import io
import os
import time
import urllib.parse
from collections.abc import Callable
from typing import IO, Any, cast

from triptych.errors import ConfigError
from triptych.sources.access import beneath, guarded, web
from triptych.sources.access.guarded import Guard, Private
from triptych.sources.access.web import BoundError, Bounds

Stamp = tuple[int, int]
"""(size in bytes, version) of a file: its mtime in ns, or a number made of the ETag or date of a remote object."""

IMAGE_BYTES = 1 << 26
"""Of a remote image, at most."""
IMAGE_SECONDS = 60.0
"""For reading a remote image, at most."""
STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "hf")
"""Object stores that records may name images in, beside web servers."""
RECENT_SECONDS = 60.0
_GONE = (404, 410)
_VERSIONS = ("ETag", "etag", "LastModified", "Last-Modified", "mtime", "updated")

_recent: dict[str, tuple[float, Stamp | None]] = {}


def is_remote(path: str) -> bool:
    """Whether ``path`` is a URL that needs fsspec."""
    return "://" in path and not path.startswith("file://")


def is_web(path: str) -> bool:
    """Whether ``path`` is a URL of a web server, which may have a query behind the name."""
    return path.startswith(("http://", "https://"))


def named(path: str) -> str:
    """A path without the query or fragment of a web address: what its ending and folder are read from."""
    return path.partition("#")[0].partition("?")[0] if is_web(path) else path


def absolute(path: str) -> str:
    """A path that means the same from every working folder; a URL already does.

    Not ``abspath``: that would take ``link/../a`` and ``a/`` for other files than the system does.
    """
    return path if is_remote(path) else os.path.join(os.getcwd(), path)


def join(root: str, name: str) -> str:
    """``name``, a file name or URL, seen from the folder ``root``, which may be a URL."""
    if is_remote(name):
        return name
    if not is_remote(root) or os.path.isabs(name):
        return os.path.join(root, name)
    return f"{root.rstrip('/')}/{urllib.parse.quote(name) if is_web(root) else name}"


def parent(path: str) -> str:
    """The folder of a file."""
    return named(path).rpartition("/")[0] if is_remote(path) else os.path.dirname(path)


def open_binary(path: str) -> IO[bytes]:
    """Open a file that the user named, for reading; remote ones are read range by range.

    Raises:
        OSError: if it cannot be opened.
    """
    if not is_remote(path):
        return open(path, "rb")
    if is_web(path):
        return web.open_web(path, Guard(private=Private.OWN_HOST), Bounds(), _options)
    return _open_in_store(path)


def open_guarded(location: str) -> IO[bytes]:
    """Open a file that a record names, under the conditions of its location (see ``access.guarded``) and, if it is
    remote, within ``IMAGE_BYTES`` and ``IMAGE_SECONDS``.

    Raises:
        OutsideError, PrivateError: if the conditions do not hold.
        OSError: if it cannot be opened, is no regular file, or costs too much.
    """
    path, guard = guarded.parse(location)
    if not is_remote(path):
        return beneath.open_regular(path, guard.root)
    if is_web(path):
        return web.open_web(path, guard, Bounds(IMAGE_BYTES, IMAGE_SECONDS), _options)
    file = _open_in_store(path)
    size = file.seek(0, io.SEEK_END)
    if size > IMAGE_BYTES:
        file.close()
        raise BoundError(errno.EFBIG, f"over {IMAGE_BYTES / 1e6:,.0f} MB; download it, or make it smaller", path)
    file.seek(0)
    return file


def may_be_named(url: str, root: str) -> bool:
    """Whether records may name a URL of this kind: web servers, object stores, and what the user named ``root`` by.

    fsspec knows many more kinds, some of which read local files or run commands elsewhere.
    """
    kind = url.partition("://")[0]
    known = kind in STORES or (is_remote(root) and kind == root.partition("://")[0])
    return is_web(url) or (known and "::" not in url)  # fsspec would open one inside the other


def _open_in_store(path: str) -> IO[bytes]:
    filesystem, inner = _filesystem(path)
    opened = _once(path, lambda: filesystem.open(inner, "rb", block_size=web.BLOCK, cache_type="readahead"))
    return cast(IO[bytes], _StoredFile(opened, path))


def stamp(path: str) -> Stamp | None:
    """Size and version of a file, None if there is none; tells whether it changed."""
    if not is_remote(path):
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return None
        return status.st_size, status.st_mtime_ns
    try:
        return _remote_stamp(path)
    except OSError:
        return None


def recent_stamp(path: str) -> Stamp | None:
    """``stamp``, which for a remote file may be up to a minute old: to ask for each member of a container costs."""
    if not is_remote(path):
        return stamp(path)
    asked, found = _recent.get(path, (-RECENT_SECONDS, None))
    if found is None or time.monotonic() - asked > RECENT_SECONDS:
        found = stamp(path)
        _recent[path] = time.monotonic(), found
    return found


def _remote_stamp(path: str) -> Stamp:
    filesystem, inner = _filesystem(path)
    info = _remotely(path, lambda: filesystem.info(inner))
    version = next((info[key] for key in _VERSIONS if info.get(key)), "")
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
    filesystem, inner = _filesystem(pattern)
    try:
        if not any(character in named(pattern) for character in "*["):
            _remote_stamp(pattern)
            return [pattern]
        found = _remotely(pattern, lambda: filesystem.glob(inner))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"cannot read {pattern!r}: {error.strerror or error}") from error
    return sorted(str(filesystem.unstrip_protocol(name)) for name in found)


def _filesystem(path: str) -> tuple[Any, str]:
    import fsspec

    try:
        filesystem, inner = fsspec.core.url_to_fs(path, **_options(path))
    except ImportError as error:
        raise ConfigError(f"{path!r}: {error}; pip install 'triptych[remote]'") from error
    except ValueError as error:
        raise ConfigError(f"{path!r}: {error}") from error
    return filesystem, inner


def _options(path: str) -> dict[str, Any]:
    """What fsspec's own defaults would get wrong for this address; the user's settings of fsspec go first."""
    if path.startswith(("s3://", "s3a://")) and "AWS_MAX_ATTEMPTS" not in os.environ:
        # s3fs tries five times itself, and botocore five times in each: minutes for a store that is silent.
        return {"config_kwargs": {"retries": {"total_max_attempts": 2}, **_configured("config_kwargs", "s3", "s3a")}}
    if not is_web(path):
        return {}
    import aiohttp

    timeout = aiohttp.ClientTimeout(sock_connect=web.CONNECT_SECONDS, sock_read=web.READ_SECONDS)
    return {
        "client_kwargs": {"timeout": timeout, **_configured("client_kwargs", "http", "https")},
        # A signature holds for the address as it was signed: what has escapes already is sent as it is.
        "encoded": "%" in path and path.isascii() and " " not in path,
    }


def _configured(name: str, *protocols: str) -> dict[str, Any]:
    import fsspec

    settings: list[dict[str, Any]] = [fsspec.config.conf.get(protocol, {}).get(name, {}) for protocol in protocols]
    return {key: value for setting in settings for key, value in setting.items()}


def _remotely(path: str, call: Callable[[], Any]) -> Any:
    """Run one call to a remote place; its libraries raise what they like, callers here see OSError."""
    for pause in web.PAUSES if is_web(path) else ():
        try:
            return _once(path, call)
        except (FileNotFoundError, PermissionError):
            raise
        except OSError:
            time.sleep(pause)
    return _once(path, call)


def _once(path: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        # fsspec says of every web address that does not answer well that it was not found; the cause knows more.
        cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
        status = getattr(cause, "status", None)
        if status in _GONE or (status is None and isinstance(cause, FileNotFoundError)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
        if isinstance(status, int):
            said = f"the server answers {status} {getattr(cause, 'message', '')}".rstrip()
            raise OSError(errno.EACCES if 400 <= status < 500 else errno.EIO, said, path) from error
        if isinstance(cause, PermissionError):
            raise PermissionError(errno.EACCES, cause.strerror or str(cause), path) from error
        said = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
        raise OSError(errno.EIO, f"{type(cause).__name__}: {said}".removesuffix(": "), path) from error


class _StoredFile:
    """A file of an object store whose read errors are OSError, whatever its library raises."""

    def __init__(self, file: Any, path: str) -> None:
        self._file = file
        self._path = path

    def read(self, size: int = -1) -> bytes:
        return cast(bytes, _once(self._path, lambda: self._file.read(size)))

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = 0) -> int:
        return cast(int, _once(self._path, lambda: self._file.seek(offset, whence)))

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

    def __enter__(self) -> _StoredFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
