"""The header of a JPEG file."""

from __future__ import annotations

import struct

from triptych.images.headers.reader import Reader, orientation, sure
from triptych.images.traits import Measured, upright

_XMP_NAME = b"http://ns.adobe.com/xap/1.0/\0"
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive, all with Huffman codes
_UNREAD = (0xC4, 0xDD, *range(0xE3, 0xED), 0xEF, 0xFE)  # DHT, DRI, APPn that Pillow only keeps, COM


def measure(read: Reader) -> Measured:
    """Size and traits of a JPEG.

    Raises:
        DoubtError: where it takes Pillow to know.
    """
    position, frame = 2, None
    exif: tuple[int, int] | None = None
    xmp: tuple[int, int] | None = None
    while True:
        lead, marker, length = struct.unpack(">BBH", read.at(position, 4))
        begin, end = position + 4, position + 2 + length
        sure(lead == 0xFF and begin <= end <= read.size)
        if marker == 0xDA:  # the pixels begin
            break
        if marker in _FRAMES:
            sure(frame is None)
            frame = _jpeg_frame(read.metadata(begin, end))
        elif marker == 0xDB:
            _check_tables(read.metadata(begin, end))
        elif marker == 0xE1:
            name = read.at(begin, min(end - begin, len(_XMP_NAME)))
            if name.startswith(b"Exif\0\0"):
                sure(exif is None)
                exif = begin + 6, end
            elif name == _XMP_NAME:
                sure(xmp is None)
                xmp = begin, end
        elif marker in (0xE0, 0xE2, 0xED, 0xEE):
            _check_application(read, begin, end)
        else:
            sure(marker in _UNREAD)
        position = end
    sure(frame is not None)
    assert frame is not None
    turned = orientation(read, exif, xmp)
    sure(read.at(read.size - 2, 2) == b"\xff\xd9")
    return upright(*frame, turned)


def _jpeg_frame(data: bytes) -> tuple[int, int]:
    sure(len(data) >= 6)
    bits, height, width, colours = struct.unpack_from(">BHHB", data)
    sure(bits == 8 and colours in (1, 3, 4) and len(data) == 6 + 3 * colours)
    return height, width


def _check_tables(data: bytes) -> None:
    """Quantization tables, each of 64 values with a byte in front that tells 8 bits from 16."""
    position = 0
    while position < len(data):
        position += 65 if data[position] < 16 else 129
    sure(position == len(data))


def _check_application(read: Reader, begin: int, end: int) -> None:
    """APP0, APP2, APP13 and APP14, where Pillow stumbles over some that are cut short."""
    name, length = read.at(begin, min(end - begin, 14)), end - begin
    sure(not name.startswith(b"MPF\0"))  # the file may hold several images
    if name.startswith((b"JFIF", b"Adobe")):
        sure(length >= 12)
    elif name.startswith(b"ICC_PROFILE\0"):
        sure(length >= 14)
    elif name == b"Photoshop 3.0\0":
        _check_photoshop(read.metadata(begin + 14, end))


def _check_photoshop(data: bytes) -> None:
    """Items of a code, a name and a value, those padded to even lengths; whatever is no item ends them."""
    position = 0
    while data.startswith(b"8BIM", position):
        sure(position + 7 <= len(data))
        position += 7 + data[position + 6]
        position += position & 1
        sure(position + 4 <= len(data))
        position += 4 + int.from_bytes(data[position : position + 4], "big")
        position += position & 1
