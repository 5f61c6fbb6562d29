"""The header of a PNG file."""

from __future__ import annotations

import struct
import zlib

from triptych.images.headers.reader import XMP_ORIENTATION, DoubtError, Reader, orientation, sure
from triptych.images.traits import NONE, Measured, Trait, upright

START = b"\x89PNG\r\n\x1a\n"
_TAILS = (1 << 15, 72 << 10)
"""Bytes at the end of a PNG that are searched for its last pixels; Pillow writes chunks of 64 KiB."""
_CHUNK = struct.Struct(">L4s")
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_LEAST = {
    **{b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9},
    **dict.fromkeys((b"PLTE", b"tEXt", b"iTXt", b"iCCP", b"eXIf", b"sBIT", b"bKGD", b"hIST", b"tIME", b"iDOT"), 1),
}
"""Chunk in front of the pixels -> the fewest bytes that Pillow takes."""
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_META = (b"exif", b"xmp", b"Raw profile type exif", b"XML:com.adobe.xmp")  # keywords Pillow gives a meaning
_MOST_PROFILE = 1 << 20  # bytes of an unpacked colour profile, over which Pillow refuses the file


def measure(read: Reader) -> Measured:
    """Size and traits of a PNG.

    Raises:
        DoubtError: where it takes Pillow to know.
    """
    header = _chunk(read, 8, 13)
    sure(header.startswith(b"IHDR"))
    width, height, depth, colour, packing, filters, interlace = struct.unpack(">4xLLBBBBB", header)
    sure(depth in _DEPTHS.get(colour, ()) and packing == filters == 0 and interlace <= 1)

    traits = Trait.ALPHA if colour & 4 else NONE
    if depth == 16 and not colour:
        traits |= Trait.DEEP_GREY
    position, exif, has_palette = 33, None, False
    while True:
        length, kind = _CHUNK.unpack(read.at(position, 8))
        if kind == b"IDAT":
            break
        chunk = _chunk(read, position, length)
        if kind == b"tRNS":
            sure(length == {0: 2, 2: 6}.get(colour, length))
            traits |= Trait.ALPHA
        else:
            sure(length >= _LEAST.get(kind, length + 1))
        if kind == b"eXIf":
            sure(exif is None)
            exif = position + 8, position + 8 + length
        elif kind in (b"tEXt", b"iTXt"):
            _check_text(kind, chunk[4:])
        elif kind == b"iCCP":
            _check_profile(chunk[4:])
        has_palette = has_palette or kind == b"PLTE"
        position += 12 + length
    sure(has_palette or colour != 3)
    turned = orientation(read, exif, None)
    _check_behind_pixels(read, position)
    return upright(height, width, turned, traits)


def _chunk(read: Reader, position: int, length: int) -> bytes:
    """Kind and data of the chunk of ``length`` at ``position``."""
    content = read.metadata(position, position + 12 + length)
    (crc,) = struct.unpack(">L", content[-4:])
    sure(int.from_bytes(content[:4], "big") == length and zlib.crc32(content[4:-4]) == crc)
    return content[4:-4]


def _check_text(kind: bytes, data: bytes) -> None:
    """A text that says nothing of the orientation."""
    keyword, end, rest = data.partition(b"\0")
    if kind == b"iTXt":
        sure(bool(end) and rest.startswith(b"\0"))  # not compressed
        if keyword == b"XML:com.adobe.xmp":
            sure(XMP_ORIENTATION not in rest)
            return
    sure(keyword not in _META)


def _check_profile(data: bytes) -> None:
    """A colour profile that Pillow unpacks."""
    _, _, rest = data.partition(b"\0")
    sure(rest.startswith(b"\0"))
    unpacking = zlib.decompressobj()
    try:
        unpacking.decompress(rest[1:], _MOST_PROFILE)
    except zlib.error as error:
        raise DoubtError from error
    sure(not unpacking.unconsumed_tail)


def _check_behind_pixels(read: Reader, position: int) -> None:
    """From the first chunk of pixels to the end of the file: no chunk that may hold an orientation, nor a frame."""
    position = _late_pixels(read, position)
    while True:
        length, kind = _CHUNK.unpack(read.fetch(8, position))
        if kind == b"IDAT":
            position += 12 + length
            continue
        if kind == b"IEND":
            break
        if kind in _TEXTS:
            keyword = read.at(position + 8, min(length, 80)).partition(b"\0")[0]
            sure(keyword not in _META)
        else:
            sure(kind in _LEAST and kind != b"eXIf")
        position += 12 + length
    sure(length == 0 and position + 12 == read.size)


def _late_pixels(read: Reader, position: int) -> int:
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
