"""Find images and measure them from their headers: height, width, orientation, and whether the file looks whole."""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
import threading
import urllib.parse
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO

import orjson
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from triptych.errors import Code, ConfigError
from triptych.images import first_bytes, near_names
from triptych.images.first_bytes import INLINE
from triptych.images.geometry import MAX_ASPECT, is_extreme
from triptych.images.headers import read_size
from triptych.sources import locations, members, storage, tars
from triptych.sources.records import ImageRef

REFUSED = "refused:"

MAX_IMAGE_PIXELS = 178_956_970
"""Images with more pixels are taken for decompression bombs (the limit at which Pillow raises its error)."""

_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = tuple(_TURNS[orientation] for orientation in _SIDEWAYS)
"""Turns that exchange height and width."""
_PNG_TEXTS = (b"iTXt", b"tEXt", b"zTXt")
_PNG_KEYWORDS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # of the texts that can hold an orientation


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


def locate(ref: ImageRef, media_root: str, *, confine: bool, allow_remote: bool = False) -> str:
    """Where the bytes of ``ref`` are, in the form that ``open_bytes`` takes: the same from every working folder.

    An absolute path, a URL, a data URI, or ``member:`` of a container. An address that may not be read becomes
    ``refused:`` with the problem, which ``open_bytes`` raises: a sample's problems are reported together.
    """
    if ref.location is not None:
        return ref.location
    source = ref.source
    if source[:5].lower() == INLINE:
        return INLINE + source[5:]
    if (raw := first_bytes.as_data_uri(source.removeprefix("base64://"))) is not None:
        return raw
    if source.startswith("file:/"):
        source = urllib.parse.unquote(source.removeprefix("file://").removeprefix("localhost").removeprefix("file:"))
    remote = storage.is_remote(source) or (storage.is_remote(media_root) and not os.path.isabs(source))
    if remote and not allow_remote:
        advice = "download it and name the file, or set data.allow_remote: true"
        return _refused("image-missing", f"remote address {_name(source)} is not read; {advice}")
    path = storage.join(media_root, source)
    if confine and not _is_inside(path, media_root):
        message = (
            f"{_name(source)} leads outside the media folder {media_root!r}; move the file in, or set confine: false"
        )
        return _refused("image-outside", message)
    if _is_tar(media_root) and not os.path.isabs(source) and not storage.is_remote(source):
        return _member_of_tar(source, media_root)
    return storage.absolute(path)


def _is_tar(root: str) -> bool:
    """Whether images are members of an archive; a folder may have any name."""
    return root.lower().endswith(".tar") and not os.path.isdir(root)


def _member_of_tar(name: str, path: str) -> str:
    try:
        place = tars.find(path, name)
    except OSError as error:
        return _refused("image-unreadable", f"cannot read {path!r}: {error.strerror or error}")
    if place is None:
        near = tars.find_nearly(path, name)
        advice = f"it has {_name(near)}" if near else "fix the name or media_dir"
        return _refused("image-missing", f"no member {_name(name)} in {path!r}; {advice}")
    return members.name("tar", path, *place, name)


def _refused(code: Code, message: str) -> str:
    return REFUSED + orjson.dumps([code, message.encode("utf-8", "replace").decode()]).decode()


def _is_inside(path: str, root: str) -> bool:
    if storage.is_remote(path) or storage.is_remote(root):
        return path.startswith(f"{root.rstrip('/')}/") and ".." not in path.split("/")
    root = os.path.realpath(root)
    try:
        return os.path.commonpath((root, os.path.realpath(path))) == root
    except ValueError:  # not a file name (a NUL byte in it): nothing lies outside
        return True


def is_remote(location: str) -> bool:
    """Whether the bytes of an image come over the network."""
    if location.startswith((INLINE, REFUSED)):
        return False
    return storage.is_remote(members.container(location) if location.startswith(members.PREFIX) else location)


@contextmanager
def open_bytes(location: str) -> Iterator[IO[bytes]]:
    """Open the image at ``location`` (see ``locate``) for reading.

    Raises:
        ImageError: ``image-missing`` or ``image-unreadable``.
    """
    if location.startswith(REFUSED):
        raise ImageError(*orjson.loads(location.removeprefix(REFUSED)))
    if location.startswith(INLINE):
        yield io.BytesIO(_inline(location))
        return
    try:
        if location.startswith(members.PREFIX):
            with locations.open_member(location) as file:
                yield file
            return
        if not storage.is_remote(location):
            _check_kind(location)
        with storage.open_binary(location) as file:
            yield file
    except OSError as error:
        raise _not_read(location, error) from error
    except ConfigError as error:  # an address that no installed library understands
        raise ImageError("image-missing", f"{_name(location)}: {error}") from error


def _check_kind(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:  # a NUL byte in the name
        raise ImageError("image-missing", f"{_name(path)} is not a file name: {error}") from error
    if stat.S_ISDIR(mode):
        raise ImageError("image-missing", f"{_name(path)} is a folder, not an image")
    if not stat.S_ISREG(mode):  # to open a pipe could wait for ever
        raise ImageError("image-unreadable", f"{_name(path)} is a pipe or device, not a file")


def _not_read(location: str, error: OSError) -> ImageError:
    name = _name(location)
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return ImageError("image-missing", f"no file {name}; {_advice(location)}")
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
    return f"{_name(near.path)} exists: {near.difference}"


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
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if size == 0:
            raise ImageError("image-unreadable", f"{_name(location)} is empty")
        height, width = read_size(file, size) or _size_by_pillow(file, location, size)
    if is_extreme(height, width):
        message = (
            f"{_name(location)} is {height} x {width} (height x width), an aspect ratio over {MAX_ASPECT}; crop it"
        )
        raise ImageError("image-extreme", message)
    return Measured(height, width)


def _size_by_pillow(file: IO[bytes], location: str, size: int) -> tuple[int, int]:
    """(height, width) of any image that Pillow opens; a file that does not end whole is decoded."""
    with opened(file, location) as image:
        height, width = upright_size(image, file)
        if not _ends_whole(image.format, file, size):
            file.seek(0)
            with opened(file, location) as again:
                load(again, location)
    return height, width


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
            raise ImageError("image-unreadable", f"{_name(location)} is not an image: it is {found}") from error
        except Image.DecompressionBombError as error:
            raise ImageError("image-unreadable", f"{_name(location)}: {error}") from error
        except Exception as error:  # Pillow's parsers raise what they meet: OSError, SyntaxError, struct.error, ...
            raise ImageError("image-unreadable", f"{_name(location)}: damaged header: {error}") from error
    with image:
        if image.width * image.height > MAX_IMAGE_PIXELS:
            message = f"{_name(location)} has {image.width * image.height:,} pixels, over {MAX_IMAGE_PIXELS:,}"
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
            raise ImageError("image-unreadable", f"{_name(location)}: truncated or damaged: {error}") from error


def turn(image: Image.Image) -> Image.Transpose | None:
    """How an image is turned upright, by its EXIF orientation (what transformers' and vLLM's loaders do).

    Not ``ImageOps.exif_transpose``: that also rewrites the EXIF data, and fails on data it cannot write.
    """
    return _TURNS.get(_orientation(image.getexif))


def upright_size(image: Image.Image, file: IO[bytes]) -> tuple[int, int]:
    """(height, width) after the EXIF orientation is applied, from the header alone."""
    height, width = image.height, image.width
    if isinstance(image, TiffImagePlugin.TiffImageFile) and ExifTags.Base.Orientation in image.tag_v2:
        return height, width  # Pillow has turned the size of a TIFF by its tag; by an XMP orientation it has not
    read = image.getexif
    if image.format == "PNG":
        # PngImageFile.getexif decodes the pixels to reach chunks after them. Where there are none, the plain reading
        # of the chunks in front is the same.
        behind = _orientation_after_pixels(file)
        read = partial(_decoded_exif if behind else Image.Image.getexif, image)
    return (width, height) if _orientation(read) in _SIDEWAYS else (height, width)


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


def _name(location: str) -> str:
    """How messages name an image; a name of any length stays readable."""
    if location.startswith(INLINE):
        return "the base64 data"
    if location.startswith(members.PREFIX):
        location = members.shown(location)
    return repr(location if len(location) <= 300 else f"{location[:140]}...{location[-140:]}")
