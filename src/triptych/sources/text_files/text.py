"""The bytes of a text file, whatever its compression and Unicode encoding; and what other encodings are called."""

from __future__ import annotations

import codecs
from typing import IO, Any

import pyarrow as pa

from triptych.sources import storage
from triptych.sources.records import split_compression

BOM = b"\xef\xbb\xbf"
MAX_RECORD = 1 << 27
"""Bytes of one line, element or row. More means that brackets or quotes do not balance, or that the file is made to
fill the memory."""

_STEP = 1 << 16
"""Bytes that are uncompressed at once: a step that fails gives none of its bytes."""
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ASIAN = (("shift_jis", "SHIFT_JIS", "\u3040", "\u30ff"), ("gb18030", "GBK", "\u4e00", "\u9fff"))
"""Codec, name for iconv, and the range in which most of its letters lie; the more particular one first."""


def sniff(head: bytes) -> str | None:
    """The encoding of a text that is Unicode but not UTF-8, by its mark or by its first letter; else None."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    if len(head) >= 4 and head[1] == 0 and head[0] and head[2]:
        return "utf-16-le"
    return "utf-16-be" if len(head) >= 4 and head[0] == 0 and head[1] and head[3] else None


def not_utf8(text: bytes, path: str) -> str:
    """What to say of text that is not UTF-8: its likely encoding, and how to convert the file."""
    name = next((name for codec, name, *letters in _ASIAN if _mostly(text, codec, *letters)), None)
    said = f"most likely {name}" if name else "perhaps WINDOWS-1252 (Western Europe)"
    return f"the text is not UTF-8, {said}: iconv -f {name or 'WINDOWS-1252'} -t UTF-8 {path!r} > NEW"


def _mostly(text: bytes, codec: str, first: str, last: str) -> bool:
    """Whether a text is valid in an encoding, and at least half of what is not ASCII lies between two letters."""
    try:
        letters = [letter for letter in text.decode(codec) if letter > "\x7f"]
    except UnicodeDecodeError:
        return False
    return sum(first <= letter <= last for letter in letters) * 2 >= len(letters)


class Text:
    """The uncompressed bytes of a file as UTF-8, read from the start."""

    def __init__(self, path: str, encoding: str | None = None) -> None:
        """
        Args:
            path: of the file.
            encoding: of its text, where it is not UTF-8; see ``sniff``.
        """
        _, self._compression = split_compression(path)
        self._decoder = codecs.getincrementaldecoder(encoding)("replace") if encoding else None
        self.plain = self._compression is None and self._decoder is None and not storage.is_remote(path)
        self.raw = storage.open_binary(path)
        self._path = path
        self._stream = self._uncompressed(self.raw)
        self._position = 0
        self._seen = 0
        self.defect: str | None = None
        """What ended reading before the end of the file."""

    def __enter__(self) -> Text:
        return self

    def __exit__(self, *_: object) -> None:
        self.raw.close()

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes; fewer at the end, or where a compressed file is damaged, and about as many where the
        text is not UTF-8.
        """
        if self._decoder is None:
            return self._read(size)
        while stored := self._read(size):
            if text := self._decoder.decode(stored):
                return text.encode("utf-8", "replace")
        return self._decoder.decode(b"", final=True).encode("utf-8", "replace")

    def _read(self, size: int) -> bytes:
        pieces = []
        while size > 0 and self.defect is None:
            try:
                piece = self._stream.read(size if self._compression is None else min(size, _STEP))
            except OSError as error:
                if self._compression is None or error.errno is not None:
                    raise  # the disk or the network; damaged content has no number
                self.defect = f"the compressed file is damaged or cut off ({error}): nothing after this was read"
                piece = self._in_front_of_damage()
            if not piece:
                break
            pieces.append(piece)
            size -= len(piece)
            self._position += len(piece)
        return b"".join(pieces)

    def _uncompressed(self, file: IO[bytes]) -> Any:
        return pa.CompressedInputStream(file, self._compression) if self._compression else file

    def _in_front_of_damage(self) -> bytes:
        """What the step that failed could have given; read again, as a stream that failed goes no further."""
        with storage.open_binary(self._path) as file:
            stream = self._uncompressed(file)
            for start in range(0, self._position, _STEP):
                stream.read(min(_STEP, self._position - start))
            found = bytearray()
            try:
                while byte := stream.read(1):
                    found += byte
            except OSError:
                return bytes(found)
        return bytes(found)

    def progress(self) -> int:
        """Bytes of the file, as stored, that were read since the last call."""
        before, self._seen = self._seen, self.raw.tell()
        return self._seen - before
