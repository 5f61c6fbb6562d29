"""The header of a WebP file."""

from __future__ import annotations

import struct

from triptych.images.headers.reader import Reader, orientation, sure
from triptych.images.traits import NONE, Measured, Trait, upright

_ICC, _EXIF, _XMP, _KNOWN = 0x20, 0x08, 0x04, 0x3C  # 0x02, not known here, is an animation
_ALPHA = 0x10


def measure(read: Reader) -> Measured:
    """Size and traits of a WebP.

    Raises:
        DoubtError: where it takes Pillow to know.
    """
    content, kind, length = struct.unpack("<L4x4sL", read.at(4, 16))
    end = content + 8
    sure(end <= read.size)  # bytes after the end do no harm
    if kind != b"VP8X":
        sure(20 + length + length % 2 == end)
        return Measured(*_frame(read, kind, 20, length), _alpha(read, kind, 20))

    flags, *canvas = read.at(20, 10)
    sure(length == 10 and flags | _KNOWN == _KNOWN)
    width, height = (1 + int.from_bytes(bytes(side), "little") for side in (canvas[3:6], canvas[6:9]))
    position, previous, frame, alpha = 30, kind, None, NONE
    meta: dict[bytes, tuple[int, int]] = {}
    while position < end:
        kind, length = struct.unpack("<4sL", read.at(position, 8))
        begin = position + 8
        position = begin + length + length % 2
        sure(previous != b"ALPH" or kind == b"VP8 ")
        if kind in (b"VP8 ", b"VP8L", b"ALPH"):
            sure(frame is None)
            frame = None if kind == b"ALPH" else _frame(read, kind, begin, length)
            alpha |= _alpha(read, kind, begin)
        else:
            flag = {b"ICCP": _ICC, b"EXIF": _EXIF, b"XMP ": _XMP}.get(kind, 0)
            sure(bool(flags & flag) and kind not in meta)
            meta[kind] = begin, begin + length
        previous = kind
    sure(position == end and frame == (height, width))
    turned = orientation(read, meta.get(b"EXIF"), meta.get(b"XMP "))
    sure(bool(flags & _ALPHA) == bool(alpha))
    return upright(height, width, turned, alpha)


def _alpha(read: Reader, kind: bytes, begin: int) -> Trait:
    """Whether a chunk brings transparency."""
    found = kind == b"ALPH" or (kind == b"VP8L" and read.at(begin + 4, 1)[0] & 0x10)
    return Trait.ALPHA if found else NONE


def _frame(read: Reader, kind: bytes, begin: int, length: int) -> tuple[int, int]:
    """(height, width) of one image, from the fields of its bitstream that libwebp checks as it opens a file."""
    sure(length >= 10)
    data = read.at(begin, 10)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<L", data, 1)
        sure(data[0] == 0x2F and bits >> 29 == 0)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    bits = int.from_bytes(data[:3], "little")
    is_shown_key_frame = bits & 0b10001 == 0b10000
    sure(kind == b"VP8 " and is_shown_key_frame and bits >> 1 & 7 <= 3 and bits >> 5 < length)
    sure(data[3:6] == b"\x9d\x01\x2a")
    width, height = struct.unpack_from("<HH", data, 6)
    return height & 0x3FFF, width & 0x3FFF
