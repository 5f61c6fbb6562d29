"""Read files of web servers that may be slow, broken or hostile: bounded in bytes and time, and in where they lead.

open:   GET bytes 0-32767  ->  206: the size is known, more is read range by range as it is asked for
                               200: all of it, into a temporary file
"""

from __future__ import annotations

import errno
import io
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from triptych.sources.access import addresses, guarded
from triptych.sources.access.guarded import Guard, OutsideError, Private

if TYPE_CHECKING:
    import aiohttp

BLOCK = 32 * 1024
"""Bytes of one ranged read: the header of an image of many megabytes costs one or two of them."""
KEPT = 256 * 1024
"""Bytes of the last read that are kept for the next one, at most."""
PIECE = 64 * 1024
IN_MEMORY = 1 << 20
"""Bytes of a file without ranges that are kept in memory; of a longer one all is in a temporary file."""
CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
"""Silence after which a web server is given up."""
PAUSES = (0.2, 1.0)
"""Seconds before each new try of what a web server did not answer; the libraries of object stores try on their own."""
MOST_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_GONE = (404, 410)
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one file may cost."""

    bytes: int | None = None
    """None for any size."""
    seconds: float | None = None
    """From opening it to the last byte that is read; None for as long as bytes come."""


class BoundError(OSError):
    """A server sends more, or takes longer, than it may, or answers what it was not asked."""


@dataclass(slots=True)
class _Answer:
    """What came for one request."""

    size: int
    """Of the whole file"""
    content: bytes = b""
    """Of the range that was asked for"""
    whole: IO[bytes] | None = None
    """All of the file, where the server serves no ranges"""


@dataclass(slots=True)
class _Server:
    """One address, asked again and again until its time is over."""

    url: str
    guard: Guard
    bounds: Bounds
    options: Callable[[str], dict[str, Any]]
    until: float | None = field(init=False)

    def __post_init__(self) -> None:
        self.until = None if self.bounds.seconds is None else time.monotonic() + self.bounds.seconds

    def ask(self, start: int, end: int) -> _Answer:
        """Bytes ``start`` to ``end`` of the file, fewer where it ends."""
        for pause in PAUSES:
            try:
                return self._once(start, end)
            except (FileNotFoundError, PermissionError, BoundError):
                raise
            except OSError:
                time.sleep(pause if self.until is None else max(0.0, min(pause, self.until - time.monotonic())))
        return self._once(start, end)

    def _once(self, start: int, end: int) -> _Answer:
        from fsspec.asyn import sync
        from fsspec.exceptions import FSTimeoutError

        left = None if self.until is None else self.until - time.monotonic()
        filesystem = self._filesystem(self.url)
        try:
            if left is not None and left <= 0:
                raise FSTimeoutError
            found: _Answer = sync(filesystem.loop, self._request, start, end, timeout=left)
        except FSTimeoutError as error:  # ours, or the silence that aiohttp noticed
            if self.until is not None and time.monotonic() >= self.until - 0.01:
                raise self._bound(f"not read within {self.bounds.seconds:g} s; download it") from error
            raise OSError(errno.EIO, "the server does not answer", self.url) from error
        except OSError as error:
            raise self._in_words(error) from error
        except Exception as error:  # aiohttp's own: what a server does to the protocol
            raise OSError(errno.EIO, f"{type(error).__name__}: {error}".removesuffix(": "), self.url) from error
        return found

    def _in_words(self, error: OSError) -> OSError:
        """A network error with the address, as the cause says it best."""
        cause = getattr(error, "os_error", error)
        if isinstance(cause, addresses.PrivateError):
            return addresses.PrivateError(errno.EACCES, cause.strerror, self.url)
        if error.filename is not None or isinstance(error, BoundError):
            return error
        said = cause.strerror if cause.strerror else str(cause)
        return OSError(errno.EIO, f"{type(error).__name__}: {said}".removesuffix(": "), self.url)

    async def _request(self, start: int, end: int) -> _Answer:
        url = self.url
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        for _ in range(MOST_REDIRECTS + 1):
            self._check(url)
            filesystem = self._filesystem(url)
            session = await filesystem.set_session()
            async with session.get(filesystem.encode_url(url), headers=headers, allow_redirects=False) as answer:
                target = answer.headers.get("Location")
                if answer.status not in _REDIRECTS or target is None:
                    return await self._read(answer, start, end)
                url = str(answer.url.join(type(answer.url)(target, encoded=True)))
        raise self._bound(f"redirected more than {MOST_REDIRECTS} times")

    def _check(self, url: str) -> None:
        """Whether a hop is one that may be asked."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or (parts.scheme == "http" and self.url.startswith("https://")):
            raise self._bound(f"redirected to {url!r}; only http and https are followed, and no https to http")
        if self.guard.root is not None and not guarded.in_folder(url, self.guard.root):
            raise OutsideError(errno.EACCES, f"redirected to {url!r}", self.url)
        host = parts.hostname or ""
        if not self._may_be_private(url) and _is_literal(host):
            addresses.refuse_private(host, [host])

    def _may_be_private(self, url: str) -> bool:
        if self.guard.private == Private.OWN_HOST:
            return guarded.same_host(url, self.url)
        return self.guard.private == Private.ALL

    def _filesystem(self, url: str) -> Any:
        """The one of fsspec whose session asks for this hop: it owns connections and their loop."""
        import fsspec

        client = _any_client if self._may_be_private(url) else _public_client
        return fsspec.filesystem("http", get_client=client, **self.options(url))

    async def _read(self, answer: aiohttp.ClientResponse, start: int, end: int) -> _Answer:
        if answer.status in _GONE:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.url)
        if answer.status == 416:  # nothing is there: the file is empty, or ends before
            return _Answer(0 if start == 0 else start)
        if answer.status not in (200, 206):
            code = errno.EACCES if 400 <= answer.status < 500 else errno.EIO
            said = f"the server answers {answer.status} {answer.reason or ''}".rstrip()
            raise OSError(code, said, self.url)
        encoding = answer.headers.get("Content-Encoding", "identity").lower()
        if encoding != "identity" and not urlsplit(self.url).path.lower().endswith((".gz", ".zst")):
            raise self._bound(f"the server sends it compressed (Content-Encoding: {encoding}), which it was not asked")
        if answer.status == 206:
            return await self._read_range(answer, start, end)
        return await self._read_whole(answer)

    async def _read_range(self, answer: aiohttp.ClientResponse, start: int, end: int) -> _Answer:
        said = answer.headers.get("Content-Range", "")
        match = _RANGE.fullmatch(said.strip())
        first, last, size = map(int, match.groups()) if match else (0, 0, 0)
        if match is None or first != start or not start <= last < min(end, size):
            raise self._bound(f"the server answers {said!r} to the question for bytes {start}-{end - 1}")
        self._check_size(size)
        content = io.BytesIO()  # gives its bytes without a copy
        async for piece in answer.content.iter_chunked(PIECE):
            content.write(piece)
            if content.tell() > last + 1 - start:
                raise self._bound("the server sends more than it says")
        if content.tell() < last + 1 - start:
            raise OSError(errno.EIO, "the server sends less than it says", self.url)
        return _Answer(size, content.getvalue())

    async def _read_whole(self, answer: aiohttp.ClientResponse) -> _Answer:
        self._check_size(answer.content_length or 0)
        file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115  # closed by who reads it
        try:
            async for piece in answer.content.iter_chunked(PIECE):
                file.write(piece)
                self._check_size(file.tell())
            return _Answer(file.tell(), whole=file)
        except BaseException:
            file.close()
            raise

    def _check_size(self, size: int) -> None:
        if self.bounds.bytes is not None and size > self.bounds.bytes:
            raise self._bound(f"over {self.bounds.bytes / 1e6:,.0f} MB; download it, or make it smaller")

    def _bound(self, said: str) -> BoundError:
        return BoundError(errno.EIO, said, self.url)


class WebFile(io.RawIOBase):
    """A file of a web server, read range by range; its first block is kept, headers begin there."""

    def __init__(self, server: _Server) -> None:
        super().__init__()
        self._server = server
        found = server.ask(0, BLOCK)
        self.size = found.size
        self._whole = found.whole
        self._head = found.content
        self._block = (0, b"")
        """Where the block that was read last begins, and its bytes"""
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """The next bytes, fewer only at the end.

        Raises:
            OSError: if the server fails, or takes too long.
        """
        left = max(0, self.size - self._at)
        content = self._bytes(self._at, self._at + (left if size is None or size < 0 else min(size, left)))
        self._at += len(content)
        return content

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if self._whole is not None:
            self._whole.close()
        super().close()

    def _bytes(self, start: int, end: int) -> bytes:
        if start >= end:
            return b""
        if self._whole is not None:
            self._whole.seek(start)
            return self._whole.read(end - start)
        for first, known in ((0, self._head), self._block):
            if first <= start < first + len(known) and end - start <= IN_MEMORY:  # joining a large one would copy it
                found = known[start - first : end - first]
                return found + self._bytes(start + len(found), end)
        fetched = self._server.ask(start, min(max(end, start + BLOCK), self.size))
        if fetched.whole is not None:
            fetched.whole.close()
        if fetched.size != self.size or not fetched.content:
            raise OSError(errno.EIO, "it changed while it was read", self._server.url)
        self._block = (start, fetched.content if len(fetched.content) <= KEPT else b"")
        return fetched.content[: end - start]


def open_web(url: str, guard: Guard, bounds: Bounds, options: Callable[[str], dict[str, Any]]) -> IO[bytes]:
    """Open a file of a web server for reading.

    Args:
        url: ``http://`` or ``https://``.
        guard: what must hold of every address on the way.
        bounds: what it may cost.
        options: of fsspec's file system, for an address.

    Raises:
        FileNotFoundError: if the server says that there is none.
        OutsideError, PrivateError: if an address on the way may not be read.
        BoundError: if it costs more than it may.
        OSError: if the server fails otherwise.
    """
    return cast(IO[bytes], WebFile(_Server(url, guard, bounds, options)))


def _is_literal(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


async def _any_client(**options: Any) -> aiohttp.ClientSession:
    return _session(options)


async def _public_client(**options: Any) -> aiohttp.ClientSession:
    import aiohttp
    from aiohttp.abc import AbstractResolver, ResolveResult

    class PublicResolver(AbstractResolver):
        """Finds the addresses of a host, unless one of them is private; what it gives is what is connected to."""

        def __init__(self) -> None:
            self._resolver = aiohttp.ThreadedResolver()

        async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
            found = await self._resolver.resolve(host, port, family)
            addresses.refuse_private(host, [item["host"] for item in found])
            return found

        async def close(self) -> None:
            await self._resolver.close()

    return _session({"connector": aiohttp.TCPConnector(resolver=PublicResolver()), **options})


def _session(options: dict[str, Any]) -> aiohttp.ClientSession:
    import aiohttp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of `loop`, which fsspec gives
        return aiohttp.ClientSession(auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar(), **options)
