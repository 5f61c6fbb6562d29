"""Find images and measure them from their headers: height, width, orientation, and whether the file looks whole."""

from __future__ import annotations

import base64
import binascii
import io
import os
import struct
import urllib.parse
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from triptych.data.conversation import ImageRef
from triptych.data.geometry import MAX_ASPECT, is_extreme
from triptych.errors import Code

MAX_IMAGE_PIXELS = 178_956_970
"""Pictures with more pixels are taken for decompression bombs (the limit at which Pillow raises its error)."""

_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
_FLOAT_MODES = ("F",)  # 32-bit floating point: no range is defined, so no 8-bit picture follows from it
_PNG_METADATA = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")  # chunks that can carry an orientation


class ImageError(Exception):
    """An image that cannot be used: ``code`` of the problem and the message, without the place."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Measured:
    """What the header says of one image, EXIF orientation already applied."""

    height: int
    width: int
    stamp: tuple[int, int]
    """(size in bytes, modification time in ns) of the file when it was measured; (length, 0) for inline data."""


def locate(ref: ImageRef, media_root: str, confine: bool) -> str:
    """The file behind ``ref``, or the data URI itself.

    Raises:
        ImageError: ``image-outside`` if ``confine`` and the file lies outside ``media_root``; ``image-missing`` for
            an address that is not read.
    """
    source = ref.source
    if source.startswith("data:"):
        return source
    if source.startswith("file://"):
        source = urllib.parse.unquote(urllib.parse.urlsplit(source).path)
    elif "://" in source:
        raise ImageError("image-missing", f"remote address {source!r} is not read; download it and name the file")
    path = os.path.join(media_root, source)
    if confine:
        root = os.path.realpath(media_root)
        if os.path.commonpath((root, os.path.realpath(path))) != root:
            message = (
                f"{source!r} leads outside the media folder {media_root!r}; move the file in, or set confine: false"
            )
            raise ImageError("image-outside", message)
    return path


def stamp(location: str) -> tuple[int, int] | None:
    """(bytes, mtime ns) of the file at ``location``, None if there is none; tells whether it changed."""
    if location.startswith("data:"):
        return len(location), 0
    try:
        status = os.stat(location)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


@contextmanager
def open_bytes(location: str) -> Iterator[IO[bytes]]:
    """Open the image at ``location``, a path or a data URI, for reading.

    Raises:
        ImageError: ``image-missing`` or ``image-unreadable``.
    """
    if location.startswith("data:"):
        header, _, payload = location.partition(",")
        if not header.endswith(";base64"):
            raise ImageError("image-unreadable", "a data URI must be base64: data:image/png;base64,...")
        try:
            yield io.BytesIO(base64.b64decode(payload, validate=True))
        except binascii.Error as error:
            raise ImageError("image-unreadable", f"the data URI is not valid base64: {error}") from error
        return
    try:
        file = open(location, "rb")  # noqa: SIM115 - closed below, around the yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError("image-missing", f"no file {location!r}; restore it, or mend the path or media_dir") from error
    except IsADirectoryError as error:
        raise ImageError("image-missing", f"{location!r} is a folder, not an image") from error
    except ValueError as error:  # a NUL byte in the name
        raise ImageError("image-missing", f"{location!r} is not a file name: {error}") from error
    except OSError as error:
        raise ImageError("image-unreadable", f"cannot open {location!r}: {error.strerror}") from error
    with file:
        yield file


def measure(location: str) -> Measured:
    """Measure an image without decoding it.

    A file whose end is not where its format puts it is decoded once to be sure, so a truncated file is found here;
    damage in the middle of a file shows only when it is decoded.

    Raises:
        ImageError: ``image-missing``, ``image-unreadable`` or ``image-extreme``.
    """
    with open_bytes(location) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if size == 0:
            raise ImageError("image-unreadable", f"{_name(location)} is empty")
        with opened(file, location) as image:
            height, width = upright_size(image, file)
            if not _ends_whole(image.format, file, size):
                file.seek(0)
                with opened(file, location) as again:
                    load(again, location)
        mtime = os.fstat(file.fileno()).st_mtime_ns if not location.startswith("data:") else 0
    if is_extreme(height, width):
        message = (
            f"{_name(location)} is {height} x {width} (height x width), an aspect ratio over {MAX_ASPECT}; crop it"
        )
        raise ImageError("image-extreme", message)
    return Measured(height, width, (len(location) if location.startswith("data:") else size, mtime))


@contextmanager
def opened(file: IO[bytes], location: str) -> Iterator[Image.Image]:
    """Read the header of ``file``; no pixel is decoded.

    Raises:
        ImageError: ``image-unreadable`` for what is not an image, is damaged in its header, is larger than
            ``MAX_IMAGE_PIXELS``, or holds floating-point pixels.
    """
    with warnings.catch_warnings():
        # Pillow warns of large but sane pictures and of odd metadata; neither changes the pixels.
        warnings.simplefilter("ignore")
        try:
            image = Image.open(file)
        except UnidentifiedImageError as error:
            raise ImageError("image-unreadable", f"{_name(location)} is not an image") from error
        except Image.DecompressionBombError as error:
            raise ImageError("image-unreadable", f"{_name(location)}: {error}") from error
        except Exception as error:  # Pillow's parsers raise what they meet: OSError, SyntaxError, struct.error, ...
            raise ImageError("image-unreadable", f"{_name(location)}: damaged header: {error}") from error
    with image:
        if image.width * image.height > MAX_IMAGE_PIXELS:
            message = f"{_name(location)} has {image.width * image.height:,} pixels, over {MAX_IMAGE_PIXELS:,}"
            raise ImageError("image-unreadable", message)
        if image.mode in _FLOAT_MODES:
            raise ImageError(
                "image-unreadable", f"{_name(location)} has floating-point pixels; save it with 8 or 16 bits"
            )
        yield image


def load(image: Image.Image, location: str) -> None:
    """Decode the pixels of an opened image in place.

    Raises:
        ImageError: ``image-unreadable`` if they are truncated or damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image.load()
        except Exception as error:  # as in `opened`: every decoder has errors of its own
            raise ImageError("image-unreadable", f"{_name(location)}: truncated or damaged: {error}") from error


def upright(image: Image.Image) -> Image.Image:
    """The decoded image turned as its EXIF orientation says (what transformers' and vLLM's loaders do)."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data: no orientation can be read, as in `upright_size`
        return image


def upright_size(image: Image.Image, file: IO[bytes]) -> tuple[int, int]:
    """(height, width) after the EXIF orientation is applied, from the header alone."""
    height, width = image.height, image.width
    if image.format == "TIFF":  # Pillow reports TIFF sizes already turned
        return height, width
    try:
        if image.format == "PNG" and ("exif" in image.info or not _metadata_after_pixels(file)):
            # PngImageFile.getexif decodes the pixels to reach chunks behind them; there are none, so the plain
            # reading of the chunks in front is the same.
            exif = Image.Image.getexif(image)
        else:
            exif = image.getexif()
        orientation = exif.get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF data, see `upright`
        return height, width
    return (width, height) if orientation in _SIDEWAYS else (height, width)


def _metadata_after_pixels(file: IO[bytes]) -> bool:
    """Whether a PNG carries chunks behind its pixel data that may hold an orientation; walks chunk headers only."""
    before, position, seen_pixels = file.tell(), 8, False
    try:
        while True:
            file.seek(position)
            header = file.read(8)
            if len(header) < 8:
                return False
            length, kind = struct.unpack(">I4s", header)
            if kind == b"IEND":
                return False
            if seen_pixels and kind in _PNG_METADATA:
                return True
            seen_pixels = seen_pixels or kind == b"IDAT"
            position += 12 + length
    finally:
        file.seek(before)  # Pillow's PNG decoder goes on from where its header reader stopped


def _ends_whole(image_format: str | None, file: IO[bytes], size: int) -> bool:
    """Whether the file ends as its format says; False is a suspicion, not a verdict."""
    if image_format in ("JPEG", "MPO"):
        file.seek(max(0, size - 2))
        return file.read(2) == b"\xff\xd9"
    if image_format == "PNG":
        file.seek(max(0, size - 8))
        return file.read(4) == b"IEND"
    if image_format == "WEBP":
        file.seek(4)
        return size >= int.from_bytes(file.read(4), "little") + 8
    if image_format == "GIF":
        file.seek(max(0, size - 1))
        return file.read(1) == b"\x3b"
    # The other formats are rare in training data: sure by decoding.
    return False


def _name(location: str) -> str:
    return "the data URI" if location.startswith("data:") else repr(location)
