"""Measure an everyday JPEG, PNG or WebP file from a few small reads; any other file is left to Pillow."""

from __future__ import annotations

import struct
from typing import IO

from PIL import features

from triptych.images.headers import jpeg, png, webp
from triptych.images.headers.reader import DoubtError, Reader, sure
from triptych.images.traits import Measured

_MOST_PIXELS = 89_478_485
"""From here on Pillow warns of images, and soon refuses them."""
_WEBP = bool(features.check("webp"))


def read_header(file: IO[bytes], size: int) -> Measured | None:
    """Size and traits of an image, EXIF orientation applied; None where it takes Pillow to know.

    An answer means that Pillow opens the file, gives it this size, orientation and mode, and that the file ends where
    its format says. Anything unusual, damaged or not understood is None. The position in ``file`` may be moved.

    Args:
        file: an image of any format; it is read from position 0.
        size: of the file, bytes.
    """
    read = Reader(file, size)
    try:
        start = read.at(0, 12)
        if start.startswith(b"\xff\xd8\xff"):
            found = jpeg.measure(read)
        elif start.startswith(png.START):
            found = png.measure(read)
        elif _WEBP and start.startswith(b"RIFF") and start.endswith(b"WEBP"):
            found = webp.measure(read)
        else:
            return None
        sure(0 < found.height * found.width <= _MOST_PIXELS)
    except (DoubtError, struct.error):  # struct.error: the file ended first
        return None
    return found
