"""Awkward image files: every format, orientation, mode and shape that people's data sets hold."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin
from PIL.PngImagePlugin import PngInfo

import tiny

HEIGHT, WIDTH = 61, 94
"""Of the upright image behind most cases; neither is a multiple of a patch, nor close to the other."""

# How to store an upright image so that a viewer that follows the orientation shows it upright again.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def upright() -> Image.Image:
    return tiny.image(HEIGHT, WIDTH, seed=7)


def stored(orientation: int) -> Image.Image:
    """The upright image as a camera held differently stores it."""
    method = STORED[orientation]
    return upright() if method is None else upright().transpose(method)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    tags[ExifTags.Base.Make] = "Camera"
    return tags


def xmp(orientation: int) -> str:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/">'
        f"<tiff:Orientation>{orientation}</tiff:Orientation></rdf:Description></rdf:RDF></x:xmpmeta>"
    )


def png_chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    """(kind, data) of every chunk."""
    chunks, position = [], 8
    while position < len(content):
        length, kind = struct.unpack(">I4s", content[position : position + 8])
        chunks.append((kind, content[position + 8 : position + 8 + length]))
        position += 12 + length
    return chunks


def png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG file of ``chunks``."""
    body = b"".join(
        struct.pack(">I4s", len(data), kind) + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def saved(image: Image.Image, suffix: str, **options: Any) -> bytes:
    """The bytes of ``image`` in a format."""
    file = BytesIO()
    image.save(file, suffix, **options)
    return file.getvalue()


def moved_behind_pixels(content: bytes, *kinds: bytes) -> bytes:
    """A PNG whose chunks of ``kinds`` stand between the pixels and the end."""
    *chunks, end = png_chunks(content)
    return png(
        [chunk for chunk in chunks if chunk[0] not in kinds] + [chunk for chunk in chunks if chunk[0] in kinds] + [end]
    )


def raw_png(height: int, width: int, depth: int, colour: int, rows: bytes, *between: tuple[bytes, bytes]) -> bytes:
    """A PNG of a bit depth and colour type that Pillow does not write; ``rows`` are packed samples without filters."""
    stride = len(rows) // height
    filtered = b"".join(b"\0" + rows[row * stride : (row + 1) * stride] for row in range(height))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return png([(b"IHDR", header), *between, (b"IDAT", zlib.compress(filtered)), (b"IEND", b"")])


def _png_with(orientation: int, where: str, behind: bool) -> bytes:
    if where == "exif":
        content, kind = saved(stored(orientation), "PNG", exif=exif(orientation)), b"eXIf"
    else:
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp(orientation))
        content, kind = saved(stored(orientation), "PNG", pnginfo=info), b"iTXt"
    return moved_behind_pixels(content, kind) if behind else content


def _png_with_profile(orientation: int, behind: bool) -> bytes:
    """As ImageMagick wrote EXIF data before PNG had a chunk for it."""
    data = exif(orientation).tobytes()
    info = PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(data):8}\n{data.hex()}\n", zip=True)
    content = saved(stored(orientation), "PNG", pnginfo=info)
    return moved_behind_pixels(content, b"zTXt") if behind else content


def _tiff_with_xmp(orientation: int) -> bytes:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[700] = xmp(orientation).encode()
    tags.tagtype[700] = 1
    return saved(stored(orientation), "TIFF", tiffinfo=tags)


ORIENTED: dict[str, Callable[[int], bytes]] = {
    "exif.jpg": lambda n: saved(stored(n), "JPEG", exif=exif(n), quality=95),
    "xmp.jpg": lambda n: saved(stored(n), "JPEG", xmp=xmp(n).encode(), quality=95),
    "exif-before.png": lambda n: _png_with(n, "exif", False),
    "exif-after.png": lambda n: _png_with(n, "exif", True),
    "xmp-before.png": lambda n: _png_with(n, "xmp", False),
    "xmp-after.png": lambda n: _png_with(n, "xmp", True),
    "profile-before.png": lambda n: _png_with_profile(n, False),
    "profile-after.png": lambda n: _png_with_profile(n, True),
    "exif.webp": lambda n: saved(stored(n), "WEBP", exif=exif(n), lossless=True),
    "xmp.webp": lambda n: saved(stored(n), "WEBP", xmp=xmp(n).encode(), lossless=True),
    "tag.tiff": lambda n: saved(stored(n), "TIFF", exif=exif(n)),
    "tag-lzw.tiff": lambda n: saved(stored(n), "TIFF", exif=exif(n), compression="tiff_lzw"),
    "xmp.tiff": _tiff_with_xmp,
}
"""Ways to write down an orientation -> the file of an orientation."""


def alpha(mode: str) -> Image.Image:
    """An image from clear at the left to solid at the right, its hidden colours far from white."""
    image = tiny.image(HEIGHT, WIDTH, seed=3).convert(mode)
    image.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))))
    return image


def _palette(colours: int = 64) -> Image.Image:
    return upright().quantize(colours)


def _wide(channels: int) -> bytes:
    """Samples of 16 bits over their whole range, big-endian, low bytes anything."""
    values = np.random.default_rng(5).integers(0, 65536, (HEIGHT, WIDTH, channels))
    ramp = np.linspace(0, 65535, WIDTH)[None, :, None]
    return ((values // 8 + ramp * 7 / 8).astype(">u2")).tobytes()


def _sixteen(array_type: str) -> Image.Image:
    values = np.frombuffer(_wide(1), ">u2").reshape(HEIGHT, WIDTH)
    return Image.fromarray(values.astype(array_type))


FILES: dict[str, Callable[[], bytes]] = {
    # formats
    "rgb.jpg": lambda: saved(upright(), "JPEG"),
    "progressive.jpg": lambda: saved(upright(), "JPEG", progressive=True, subsampling=0),
    "rgb.png": lambda: saved(upright(), "PNG"),
    "lossy.webp": lambda: saved(upright(), "WEBP", quality=70),
    "lossless.webp": lambda: saved(upright(), "WEBP", lossless=True),
    "palette.gif": lambda: saved(_palette(), "GIF"),
    "animated.gif": lambda: saved(_palette(), "GIF", save_all=True, append_images=[_palette(4)]),
    "rgb.bmp": lambda: saved(upright(), "BMP"),
    "rgb.tiff": lambda: saved(upright(), "TIFF"),
    "lzw.tiff": lambda: saved(upright(), "TIFF", compression="tiff_lzw"),
    "jpeg-inside.png": lambda: saved(upright(), "JPEG"),
    "png-inside.jpg": lambda: saved(upright(), "PNG"),
    # colours
    "grey.jpg": lambda: saved(upright().convert("L"), "JPEG"),
    "grey.png": lambda: saved(upright().convert("L"), "PNG"),
    "bits.png": lambda: saved(upright().convert("1"), "PNG"),
    "bits.tiff": lambda: saved(upright().convert("1"), "TIFF", compression="group4"),
    "bits.bmp": lambda: saved(upright().convert("1"), "BMP"),
    "cmyk.jpg": lambda: saved(upright().convert("CMYK"), "JPEG"),
    "cmyk.tiff": lambda: saved(upright().convert("CMYK"), "TIFF"),
    "palette.png": lambda: saved(_palette(), "PNG"),
    "palette-16.png": lambda: saved(_palette(16), "PNG", bits=4),
    "palette.bmp": lambda: saved(_palette(), "BMP"),
    # transparency
    "rgba.png": lambda: saved(alpha("RGB"), "PNG"),
    "rgba.webp": lambda: saved(alpha("RGB"), "WEBP", lossless=True, exact=True),
    "rgba.tiff": lambda: saved(alpha("RGB"), "TIFF"),
    "grey-alpha.png": lambda: saved(alpha("L"), "PNG"),
    "palette-one-clear.png": lambda: saved(_palette(), "PNG", transparency=5),
    "palette-alphas.png": lambda: saved(_palette(), "PNG", transparency=bytes(range(0, 256, 4))),
    "palette-one-clear.gif": lambda: saved(_palette(), "GIF", transparency=5),
    "rgb-one-clear.png": lambda: saved(upright(), "PNG", transparency=upright().getpixel((3, 2))),
    "grey-one-clear.png": lambda: saved(upright().convert("L"), "PNG", transparency=120),
    # 16 bits
    "grey-16.png": lambda: saved(_sixteen("<u2"), "PNG"),
    "grey-16.tiff": lambda: saved(_sixteen("<u2"), "TIFF"),
    "grey-16-sideways.png": lambda: saved(_sixteen("<u2"), "PNG", exif=exif(6)),
    "grey-32.tiff": lambda: saved(_sixteen("<i4"), "TIFF"),
    "rgb-16.png": lambda: raw_png(HEIGHT, WIDTH, 16, 2, _wide(3)),
    "rgba-16.png": lambda: raw_png(HEIGHT, WIDTH, 16, 6, _wide(4)),
    "grey-alpha-16.png": lambda: raw_png(HEIGHT, WIDTH, 16, 4, _wide(2)),
    # shapes
    **{
        f"{height}x{width}.png": lambda height=height, width=width: saved(tiny.image(height, width), "PNG")
        for height, width in (
            (1, 1),
            (1, 150),
            (150, 1),
            (3, 5),
            (5, 3),
            (2, 2),
            (28, 28),
            (42, 70),
            (199, 1),
            (7, 1400),
        )
    },
    "1x150.jpg": lambda: saved(tiny.image(1, 150), "JPEG"),
    "10x1990.jpg": lambda: saved(tiny.image(10, 1990), "JPEG"),
    # orientations
    **{
        f"orientation-{number}-{name}": lambda make=make, number=number: make(number)
        for name, make in ORIENTED.items()
        for number in range(1, 9)
    },
}
"""Name -> content."""
