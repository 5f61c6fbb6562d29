"""Find images and measure them from their headers: height, width, orientation, and whether the file looks whole."""

from __future__ import annotations

import errno
import io
import os
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO

import orjson
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from triptych.errors import Code, ConfigError
from triptych.images import identity, near_names
from triptych.images.geometry import MAX_ASPECT, is_extreme
from triptych.images.headers import first_bytes
from triptych.images.headers.first_bytes import INLINE
from triptych.images.headers.read import read_header
from triptych.images.identity import shown
from triptych.images.traits import SIDEWAYS as SIDEWAYS_EXIF
from triptych.images.traits import Measured, traits_of, upright
from triptych.sources import locations, members, storage
from triptych.sources.access import guarded
from triptych.sources.access.addresses import PrivateError
from triptych.sources.access.guarded import OutsideError

MAX_IMAGE_PIXELS = 178_956_970
"""Images with more pixels are taken for decompression bombs (the limit at which Pillow raises its error)."""

MAX_BYTES = 1 << 30
"""Bytes of an image file, or of what a container says is one."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = tuple(_TURNS[orientation] for orientation in SIDEWAYS_EXIF)
"""Turns that exchange height and width."""
_PNG_TEXTS = (b"iTXt", b"tEXt", b"zTXt")
_PNG_KEYWORDS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # of the texts that can hold an orientation


class ImageError(Exception):
    """An image that cannot be used: ``code`` of the problem and the message, without the place."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@contextmanager
def open_bytes(location: str) -> Iterator[IO[bytes]]:
    """Open the image at ``location`` (see ``locate``) for reading.

    Raises:
        ImageError: ``image-missing``, ``image-outside`` or ``image-unreadable``.
    """
    if location.startswith(identity.REFUSED):
        raise ImageError(*orjson.loads(location.removeprefix(identity.REFUSED)))
    if location.startswith(INLINE):
        yield io.BytesIO(_inline(location))
        return
    try:
        if location.startswith(members.PREFIX):
            with locations.open_member(location) as file:
                yield file
            return
        with _open_file(location) as file:
            yield file
    except OSError as error:
        raise _not_read(location, error) from error
    except ConfigError as error:  # an address that no installed library understands
        raise ImageError("image-missing", f"{shown(location)}: {error}") from error


def _open_file(location: str) -> IO[bytes]:
    try:
        return storage.open_guarded(location)
    except ValueError as error:  # a NUL byte in the name
        raise ImageError("image-missing", f"{shown(location)} is not a file name: {error}") from error


def _not_read(location: str, error: OSError) -> ImageError:
    name = shown(location)
    path, guard = guarded.parse(location)
    if isinstance(error, OutsideError):
        return ImageError("image-outside", f"{identity.leads_outside(path, guard.root or '')} ({error.strerror})")
    if isinstance(error, PrivateError):
        return ImageError("image-missing", f"{name} is not read: {error.strerror}")
    if isinstance(error, IsADirectoryError):
        return ImageError("image-missing", f"{name} is a folder, not an image")
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return ImageError("image-missing", f"no file {name}; {_advice(path)}")
    if error.errno == errno.ENAMETOOLONG:
        advice = "base64 data of an image needs data:image/png;base64, in front"
        return ImageError("image-missing", f"no file {name}: the name is too long; {advice}")
    return ImageError("image-unreadable", f"cannot read {name}: {error.strerror or error}")


def _advice(location: str) -> str:
    """What to do about a file that is not there."""
    if location.startswith(members.PREFIX) or storage.is_remote(location):
        return "restore it, or fix the path or media_dir"
    if os.path.islink(location):
        return f"it is a link to {os.readlink(location)!r}, which is not there"
    if first_bytes.looks_like_base64(location.rpartition("/")[2]):
        return "base64 data of an image needs data:image/png;base64, in front"
    near = near_names.near(location)
    if near is None:
        return near_names.tell_tale(location) or "restore it, or fix the path or media_dir"
    return f"{shown(near.path)} exists: {near.difference}"


def _inline(uri: str) -> bytes:
    try:
        return first_bytes.decode_data_uri(uri)
    except ValueError as error:
        raise ImageError("image-unreadable", str(error)) from error


def measure(location: str) -> Measured:
    """Measure an image without decoding it.

    A file whose end is not where its format puts it is decoded once to be sure, so a truncated file is found here;
    damage in the middle of a file shows only when it is decoded.

    Raises:
        ImageError: ``image-missing``, ``image-unreadable`` or ``image-extreme``.
    """
    with open_bytes(location) as file:
        size = _size(file, location)
        if size == 0:
            raise ImageError("image-unreadable", f"{shown(location)} is empty")
        found = read_header(file, size) or _by_pillow(file, location, size)
    if is_extreme(found.height, found.width):
        sides = f"{found.height} x {found.width} (height x width)"
        message = f"{shown(location)} is {sides}, an aspect ratio over {MAX_ASPECT}; crop it"
        raise ImageError("image-extreme", message)
    return found


def read_all(location: str) -> io.BytesIO:
    """The bytes of an image.

    Raises:
        ImageError: ``image-missing``, ``image-outside`` or ``image-unreadable``.
    """
    with open_bytes(location) as file:
        _size(file, location)
        return io.BytesIO(file.read())


def _size(file: IO[bytes], location: str) -> int:
    size = file.seek(0, os.SEEK_END)
    if size > MAX_BYTES:
        raise ImageError("image-unreadable", f"{shown(location)} has {size:,} bytes, over {MAX_BYTES:,}")
    file.seek(0)
    return size


def _by_pillow(file: IO[bytes], location: str, size: int) -> Measured:
    """Size and traits of any image that Pillow opens; a file that does not end whole is decoded."""
    with opened(file, location) as image:
        found = upright_size(image, file)
        if not _ends_whole(image.format, file, size):
            file.seek(0)
            with opened(file, location) as again:
                load(again, location)
    return found


@contextmanager
def opened(file: IO[bytes], location: str) -> Iterator[Image.Image]:
    """Read the header of ``file``; no pixel is decoded.

    Raises:
        ImageError: ``image-unreadable`` for what is not an image, is damaged in its header, or is larger than
            ``MAX_IMAGE_PIXELS``.
    """
    with _quiet:
        try:
            image = Image.open(file)
        except UnidentifiedImageError as error:
            file.seek(0)
            found = first_bytes.what_it_is(file.read(first_bytes.HEAD))
            raise ImageError("image-unreadable", f"{shown(location)} is not an image: it is {found}") from error
        except Image.DecompressionBombError as error:
            raise ImageError("image-unreadable", f"{shown(location)}: {error}") from error
        except Exception as error:  # Pillow's parsers raise what they meet: OSError, SyntaxError, struct.error, ...
            raise ImageError("image-unreadable", f"{shown(location)}: damaged header: {error}") from error
    with image:
        if image.width * image.height > MAX_IMAGE_PIXELS:
            message = f"{shown(location)} has {image.width * image.height:,} pixels, over {MAX_IMAGE_PIXELS:,}"
            raise ImageError("image-unreadable", message)
        yield image


def load(image: Image.Image, location: str) -> None:
    """Decode the pixels of an opened image in place.

    Raises:
        ImageError: ``image-unreadable`` if they are truncated or damaged.
    """
    with _quiet:
        try:
            image.load()
        except Exception as error:  # as in `opened`: every decoder has errors of its own
            raise ImageError("image-unreadable", f"{shown(location)}: truncated or damaged: {error}") from error


def turn(image: Image.Image) -> Image.Transpose | None:
    """How an image is turned upright, by its EXIF orientation (what transformers' and vLLM's loaders do).

    Not ``ImageOps.exif_transpose``: that also rewrites the EXIF data, and fails on data it cannot write.
    """
    return _TURNS.get(_orientation(image.getexif))


def upright_size(image: Image.Image, file: IO[bytes]) -> Measured:
    """Size and traits after the EXIF orientation is applied, from the header alone."""
    traits = traits_of(image)
    if isinstance(image, TiffImagePlugin.TiffImageFile) and ExifTags.Base.Orientation in image.tag_v2:
        # Pillow turns a TIFF by its tag, as everyone does who reads it with Pillow; by an XMP orientation it does not.
        return Measured(image.height, image.width, traits)
    read = image.getexif
    if image.format == "PNG":
        # PngImageFile.getexif decodes the pixels to reach chunks after them. Where there are none, the plain reading
        # of the chunks in front is the same.
        behind = _orientation_after_pixels(file)
        read = partial(_decoded_exif if behind else Image.Image.getexif, image)
    return upright(image.height, image.width, _orientation(read), traits)


def _orientation(read: Callable[[], Image.Exif]) -> int:
    try:
        with _quiet:
            orientation: int = read().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF data: no orientation can be read
        return 1
    return orientation


def _decoded_exif(image: Image.Image) -> Image.Exif:
    image.load()
    return image.getexif()


class _Quiet:
    """Pillow warns of large but sane images and of odd metadata; neither changes the pixels.

    Filters of warnings belong to the process: the first thread that comes changes them, the last one restores them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._catching = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._catching = warnings.catch_warnings()
                self._catching.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._catching.__exit__(None, None, None)


_quiet = _Quiet()


def _orientation_after_pixels(file: IO[bytes]) -> bool:
    """Whether a PNG has a chunk after its pixel data that may hold an orientation; walks chunk headers only."""
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
            if seen_pixels and (kind == b"eXIf" or (kind in _PNG_TEXTS and file.read(22).startswith(_PNG_KEYWORDS))):
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
