"""Read the size of an everyday JPEG, PNG or WebP file from a few small reads; any other file is left to Pillow."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from functools import partial
from typing import IO

from PIL import features

_BLOCK = 4096
"""Bytes of the first read, which holds the whole header of most files."""
_LONGEST = 1 << 17
"""Bytes of metadata that are read at once; longer ones are left to Pillow."""
_TAILS = (1 << 15, 72 << 10)
"""Bytes at the end of a PNG that are searched for its last pixels; Pillow writes chunks of 64 KiB."""
_MOST_PIXELS = 89_478_485
"""From here on Pillow warns of images, and soon refuses them."""
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange height and width

_ORIENTATION = 0x0112
_TAG_KINDS = {_ORIENTATION: (3, 1), 0x011A: (5, 1), 0x0128: (3, 1)}
"""Tag -> (type, count) of those that Pillow uses as it opens a file: orientation, resolution and its unit."""
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_XMP_ORIENTATION = b"tiff:Orientation"

_XMP_NAME = b"http://ns.adobe.com/xap/1.0/\0"
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive, all with Huffman codes
_UNREAD = (0xC4, 0xDD, *range(0xE3, 0xED), 0xEF, 0xFE)  # DHT, DRI, APPn that Pillow only keeps, COM

_PNG_START = b"\x89PNG\r\n\x1a\n"
_CHUNK = struct.Struct(">L4s")
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PNG_LEAST = {
    **{b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9},
    **dict.fromkeys((b"PLTE", b"tEXt", b"iTXt", b"iCCP", b"eXIf", b"sBIT", b"bKGD", b"hIST", b"tIME", b"iDOT"), 1),
}
"""Chunk in front of the pixels -> the fewest bytes that Pillow takes."""
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_PNG_META = (b"exif", b"xmp", b"Raw profile type exif", b"XML:com.adobe.xmp")  # keywords Pillow gives a meaning
_MOST_PROFILE = 1 << 20  # bytes of an unpacked colour profile, over which Pillow refuses the file

_WEBP = bool(features.check("webp"))
_WEBP_ICC, _WEBP_EXIF, _WEBP_XMP, _WEBP_KNOWN = 0x20, 0x08, 0x04, 0x3C  # 0x02, not known here, is an animation


class _DoubtError(Exception):
    """The file is not one that can be judged here."""


def read_size(file: IO[bytes], size: int) -> tuple[int, int] | None:
    """(height, width) of an image, EXIF orientation applied; None where it takes Pillow to know.

    An answer means that Pillow opens the file, gives it this size and orientation, and that the file ends where its
    format says. Anything unusual, damaged or not understood is None. The position in ``file`` may be moved.

    Args:
        file: an image of any format; it is read from position 0.
        size: of the file, bytes.
    """
    read = _Reader(file, size)
    try:
        start = read.at(0, 12)
        if start.startswith(b"\xff\xd8\xff"):
            height, width, orientation = _jpeg(read)
        elif start.startswith(_PNG_START):
            height, width, orientation = _png(read)
        elif _WEBP and start.startswith(b"RIFF") and start.endswith(b"WEBP"):
            height, width, orientation = _webp(read)
        else:
            return None
        _sure(0 < height * width <= _MOST_PIXELS)
    except (_DoubtError, struct.error):  # struct.error: the file ended first
        return None
    return (width, height) if orientation in _SIDEWAYS else (height, width)


def _sure(condition: bool) -> None:
    if not condition:
        raise _DoubtError


class _Reader:
    """Bytes of a file by their position."""

    __slots__ = ("_block", "_start", "fetch", "size")

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.size = size
        self.fetch = _reading(file)
        """(count, position) -> bytes, fewer of them at the end of the file."""
        self._block, self._start = self.fetch(_BLOCK, 0), 0

    def at(self, position: int, count: int) -> bytes:
        """``count`` bytes, from the block read last if they are in it."""
        offset = position - self._start
        if offset < 0 or offset + count > len(self._block):
            _sure(position + count <= self.size)
            self._block, self._start, offset = self.fetch(max(count, _BLOCK), position), position, 0
            _sure(len(self._block) >= count)
        return self._block[offset : offset + count]

    def metadata(self, begin: int, end: int) -> bytes:
        """All from ``begin`` to ``end``, if that is not long."""
        _sure(end - begin <= _LONGEST)
        return self.at(begin, end - begin)


def _reading(file: IO[bytes]) -> Callable[[int, int], bytes]:
    """(count, position) -> bytes of ``file``, fewer of them at its end."""
    if isinstance(file, io.BufferedReader) and isinstance(file.raw, io.FileIO) and hasattr(os, "pread"):
        return partial(os.pread, file.fileno())  # a PNG has a small read for every 8 KiB: a buffer would cost more

    def read(count: int, position: int) -> bytes:
        file.seek(position)
        return file.read(count)

    return read


def _orientation(read: _Reader, exif: tuple[int, int] | None, xmp: tuple[int, int] | None) -> int:
    """Of (begin, end) of the EXIF and XMP data; 1 if they say nothing."""
    orientation = None if exif is None else _exif_orientation(read, *exif)
    if orientation is None and xmp is not None:
        _sure(_XMP_ORIENTATION not in read.metadata(*xmp))
    return orientation or 1


def _exif_orientation(read: _Reader, begin: int, end: int) -> int | None:
    """Of well-formed EXIF data; None if there is none in its first directory."""
    _sure(end - begin >= 14)
    if read.at(begin, 6) == b"Exif\0\0":
        begin += 6
    head, length = read.at(begin, 8), end - begin
    _sure(head.startswith((b"II*\0", b"MM\0*")))
    order = "<" if head.startswith(b"I") else ">"
    (directory,) = struct.unpack(order + "L", head[4:])
    _sure(directory + 2 <= length)
    (count,) = struct.unpack(order + "H", read.at(begin + directory, 2))
    _sure(directory + 2 + 12 * count <= length)

    orientation, outside = None, 0
    entries = read.at(begin + directory + 2, 12 * count)
    for tag, kind, number, value in struct.iter_unpack(order + "HHL4s", entries):
        taken = _TYPE_BYTES.get(kind, 0) * number
        _sure(taken > 0)
        if taken > 4:
            (where,) = struct.unpack(order + "L", value)
            outside += taken
            _sure(where + taken <= length and outside <= length)
        if tag in _TAG_KINDS:
            _sure(_TAG_KINDS[tag] == (kind, number))
        if tag == _ORIENTATION:
            _sure(orientation is None)
            (orientation,) = struct.unpack(order + "H", value[:2])
    return orientation


def _jpeg(read: _Reader) -> tuple[int, int, int]:
    position, frame = 2, None
    exif: tuple[int, int] | None = None
    xmp: tuple[int, int] | None = None
    while True:
        lead, marker, length = struct.unpack(">BBH", read.at(position, 4))
        begin, end = position + 4, position + 2 + length
        _sure(lead == 0xFF and begin <= end <= read.size)
        if marker == 0xDA:  # the pixels begin
            break
        if marker in _FRAMES:
            _sure(frame is None)
            frame = _jpeg_frame(read.metadata(begin, end))
        elif marker == 0xDB:
            _check_tables(read.metadata(begin, end))
        elif marker == 0xE1:
            name = read.at(begin, min(end - begin, len(_XMP_NAME)))
            if name.startswith(b"Exif\0\0"):
                _sure(exif is None)
                exif = begin + 6, end
            elif name == _XMP_NAME:
                _sure(xmp is None)
                xmp = begin, end
        elif marker in (0xE0, 0xE2, 0xED, 0xEE):
            _check_application(read, begin, end)
        else:
            _sure(marker in _UNREAD)
        position = end
    _sure(frame is not None)
    assert frame is not None
    orientation = _orientation(read, exif, xmp)
    _sure(read.at(read.size - 2, 2) == b"\xff\xd9")
    return *frame, orientation


def _jpeg_frame(data: bytes) -> tuple[int, int]:
    _sure(len(data) >= 6)
    bits, height, width, colours = struct.unpack_from(">BHHB", data)
    _sure(bits == 8 and colours in (1, 3, 4) and len(data) == 6 + 3 * colours)
    return height, width


def _check_tables(data: bytes) -> None:
    """Quantization tables, each of 64 values with a byte in front that tells 8 bits from 16."""
    position = 0
    while position < len(data):
        position += 65 if data[position] < 16 else 129
    _sure(position == len(data))


def _check_application(read: _Reader, begin: int, end: int) -> None:
    """APP0, APP2, APP13 and APP14, where Pillow stumbles over some that are cut short."""
    name, length = read.at(begin, min(end - begin, 14)), end - begin
    _sure(not name.startswith(b"MPF\0"))  # the file may hold several images
    if name.startswith((b"JFIF", b"Adobe")):
        _sure(length >= 12)
    elif name.startswith(b"ICC_PROFILE\0"):
        _sure(length >= 14)
    elif name == b"Photoshop 3.0\0":
        _check_photoshop(read.metadata(begin + 14, end))


def _check_photoshop(data: bytes) -> None:
    """Items of a code, a name and a value, those padded to even lengths; whatever is no item ends them."""
    position = 0
    while data.startswith(b"8BIM", position):
        _sure(position + 7 <= len(data))
        position += 7 + data[position + 6]
        position += position & 1
        _sure(position + 4 <= len(data))
        position += 4 + int.from_bytes(data[position : position + 4], "big")
        position += position & 1


def _png(read: _Reader) -> tuple[int, int, int]:
    header = _png_chunk(read, 8, 13)
    _sure(header.startswith(b"IHDR"))
    width, height, depth, colour, packing, filters, interlace = struct.unpack(">4xLLBBBBB", header)
    _sure(depth in _PNG_DEPTHS.get(colour, ()) and packing == filters == 0 and interlace <= 1)

    position, exif, has_palette = 33, None, False
    while True:
        length, kind = _CHUNK.unpack(read.at(position, 8))
        if kind == b"IDAT":
            break
        chunk = _png_chunk(read, position, length)
        if kind == b"tRNS":
            _sure(length == {0: 2, 2: 6}.get(colour, length))
        else:
            _sure(length >= _PNG_LEAST.get(kind, length + 1))
        if kind == b"eXIf":
            _sure(exif is None)
            exif = position + 8, position + 8 + length
        elif kind in (b"tEXt", b"iTXt"):
            _check_text(kind, chunk[4:])
        elif kind == b"iCCP":
            _check_profile(chunk[4:])
        has_palette = has_palette or kind == b"PLTE"
        position += 12 + length
    _sure(has_palette or colour != 3)
    orientation = _orientation(read, exif, None)
    _check_behind_pixels(read, position)
    return height, width, orientation


def _png_chunk(read: _Reader, position: int, length: int) -> bytes:
    """Kind and data of the chunk of ``length`` at ``position``."""
    content = read.metadata(position, position + 12 + length)
    (crc,) = struct.unpack(">L", content[-4:])
    _sure(int.from_bytes(content[:4], "big") == length and zlib.crc32(content[4:-4]) == crc)
    return content[4:-4]


def _check_text(kind: bytes, data: bytes) -> None:
    """A text that says nothing of the orientation."""
    keyword, end, rest = data.partition(b"\0")
    if kind == b"iTXt":
        _sure(bool(end) and rest.startswith(b"\0"))  # not compressed
        if keyword == b"XML:com.adobe.xmp":
            _sure(_XMP_ORIENTATION not in rest)
            return
    _sure(keyword not in _PNG_META)


def _check_profile(data: bytes) -> None:
    """A colour profile that Pillow unpacks."""
    _, _, rest = data.partition(b"\0")
    _sure(rest.startswith(b"\0"))
    unpacking = zlib.decompressobj()
    try:
        unpacking.decompress(rest[1:], _MOST_PROFILE)
    except zlib.error as error:
        raise _DoubtError from error
    _sure(not unpacking.unconsumed_tail)


def _check_behind_pixels(read: _Reader, position: int) -> None:
    """From the first chunk of pixels to the end of the file: no chunk that may hold an orientation, nor a frame."""
    position = _late_pixels(read, position)
    while True:
        length, kind = _CHUNK.unpack(read.fetch(8, position))
        if kind == b"IDAT":
            position += 12 + length
            continue
        if kind == b"IEND":
            break
        if kind in _PNG_TEXTS:
            keyword = read.at(position + 8, min(length, 80)).partition(b"\0")[0]
            _sure(keyword not in _PNG_META)
        else:
            _sure(kind in _PNG_LEAST and kind != b"eXIf")
        position += 12 + length
    _sure(length == 0 and position + 12 == read.size)


def _late_pixels(read: _Reader, position: int) -> int:
    """A chunk of pixels near the end, from which chunk follows chunk to the end of the file; else ``position``.

    A large image has thousands of chunks, and each is a request where the file is remote.
    """
    for length in _TAILS:
        if read.size - position <= 2 * length:
            break
        start = read.size - length
        place = _chunk_before_end(read.fetch(length, start))
        if place is not None:
            return start + place
    return position


def _chunk_before_end(tail: bytes) -> int | None:
    """Where in ``tail`` a chunk of pixels begins, from which chunk follows chunk to its end."""
    found = tail.find(b"IDAT", 4)
    while found >= 0:
        place = found - 4
        while place + 12 <= len(tail):
            length, kind = _CHUNK.unpack_from(tail, place)
            place += 12 + length
            if kind == b"IEND" and place == len(tail):
                return found - 4
        found = tail.find(b"IDAT", found + 4)
    return None


def _webp(read: _Reader) -> tuple[int, int, int]:
    content, kind, length = struct.unpack("<L4x4sL", read.at(4, 16))
    end = content + 8
    _sure(end <= read.size)  # bytes after the end do no harm
    if kind != b"VP8X":
        _sure(20 + length + length % 2 == end)
        return *_webp_frame(read, kind, 20, length), 1

    flags, *canvas = read.at(20, 10)
    _sure(length == 10 and flags | _WEBP_KNOWN == _WEBP_KNOWN)
    width, height = (1 + int.from_bytes(bytes(side), "little") for side in (canvas[3:6], canvas[6:9]))
    position, previous, frame = 30, kind, None
    meta: dict[bytes, tuple[int, int]] = {}
    while position < end:
        kind, length = struct.unpack("<4sL", read.at(position, 8))
        begin = position + 8
        position = begin + length + length % 2
        _sure(previous != b"ALPH" or kind == b"VP8 ")
        if kind in (b"VP8 ", b"VP8L", b"ALPH"):
            _sure(frame is None)
            frame = None if kind == b"ALPH" else _webp_frame(read, kind, begin, length)
        else:
            flag = {b"ICCP": _WEBP_ICC, b"EXIF": _WEBP_EXIF, b"XMP ": _WEBP_XMP}.get(kind, 0)
            _sure(bool(flags & flag) and kind not in meta)
            meta[kind] = begin, begin + length
        previous = kind
    _sure(position == end and frame == (height, width))
    return height, width, _orientation(read, meta.get(b"EXIF"), meta.get(b"XMP "))


def _webp_frame(read: _Reader, kind: bytes, begin: int, length: int) -> tuple[int, int]:
    """(height, width) of one image, from the fields of its bitstream that libwebp checks as it opens a file."""
    _sure(length >= 10)
    data = read.at(begin, 10)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<L", data, 1)
        _sure(data[0] == 0x2F and bits >> 29 == 0)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    bits = int.from_bytes(data[:3], "little")
    is_shown_key_frame = bits & 0b10001 == 0b10000
    _sure(kind == b"VP8 " and is_shown_key_frame and bits >> 1 & 7 <= 3 and bits >> 5 < length)
    _sure(data[3:6] == b"\x9d\x01\x2a")
    width, height = struct.unpack_from("<HH", data, 6)
    return height & 0x3FFF, width & 0x3FFF
