"""Decode one image straight to the patches a model takes, as bytes; no torch, no float."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from triptych.errors import Origin, Problem
from triptych.images import measure
from triptych.images.geometry import Geometry, SizedImage
from triptych.images.measure import ImageError
from triptych.images.resample import resize_like_torchvision

Decode = Literal["exact", "fast"]
"""Pixels as transformers' image processor makes them, or JPEGs scaled while they are decoded."""
GREY_BITS = (8, 10, 12, 14, 16)
"""Usual depths of grey; scanners and cameras store 12 bits in 16."""


def load_rgb(location: str) -> Image.Image:
    """Decode an image upright and in RGB.

    EXIF orientation is applied; transparency is composited on white (as vLLM does when it serves the family); grey of
    more than 8 bits is scaled by what it uses (see ``deep_grey``).

    Raises:
        ImageError: ``image-missing`` or ``image-unreadable``.
    """
    content = measure.read_all(location)
    with measure.opened(content, location) as image:
        measure.load(image, location)
        turn = measure.turn(image)
        try:
            return to_rgb(image if turn is None else image.transpose(turn))
        except Exception as error:
            raise _inconvertible(location, error) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode that Pillow reads as RGB."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if _is_deep_grey(image):
        return deep_grey(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


def _is_deep_grey(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")  # I;16, I;16B, I


def deep_grey(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits as grey of 8 bits, scaled by what is in use: Pillow would cut off what is over 255.

    Whole numbers from 0 to 65,535 keep the high bits of the smallest usual depth (8, 10, 12, 14 or 16 bits) that holds
    all of them; fractions from 0 to 1 are taken times 255; any other values go from black at the least to white at
    the greatest. What is no number is black, and a clear value of a PNG is white.
    """
    values = np.asarray(image)
    clear = values == image.info.get("transparency", np.nan)
    used = values[np.isfinite(values) & ~clear]
    low, high = (float(used.min()), float(used.max())) if used.size else (0.0, 0.0)
    scaled = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
    fractions = values.dtype.kind == "f" and (high <= 1 or bool(np.any(used != np.round(used))))
    if low >= 0 and high <= 65_535 and not fractions:
        shift = next(bits for bits in GREY_BITS if high < 2**bits) - 8
        scaled = np.floor(scaled / 2**shift)
    elif low >= 0 and high <= 1:
        scaled = np.round(scaled * 255)
    elif high > low:
        scaled = np.round((scaled - low) / (high - low) * 255)
    scaled[clear] = 255
    return Image.fromarray(scaled.clip(0, 255).astype(np.uint8))


def load_patches(
    location: str,
    size: tuple[int, int],
    resized: tuple[int, int],
    geometry: Geometry,
    decode: Decode = "exact",
) -> NDArray[np.uint8]:
    """Patches (P, 3 * p * p) of an image file.

    Args:
        location: path or data URI.
        size: (height, width) as measured; a file that no longer has it was changed since.
        resized: (height, width) to resize to, px.
        geometry: the model's patch arithmetic.
        decode: how.

    Raises:
        ImageError: ``image-missing`` or ``image-unreadable``.
    """
    return patchify(_load_resized(location, size, _way(size, resized, geometry, decode)), geometry)


@dataclass(frozen=True, slots=True)
class _Way:
    """How an image comes to its size in the model; sizes are (height, width), px."""

    resized: tuple[int, int]
    first: tuple[int, int] | None = None
    """Of a resize before it."""
    like_torchvision: bool = False
    """Whether the last resize has torchvision's rounding, and not Pillow's."""
    decode: Decode = "exact"


def _way(size: tuple[int, int], resized: tuple[int, int], geometry: Geometry, decode: Decode = "exact") -> _Way:
    """What ``data.resize`` and ``data.decode`` say; a JPEG that is scaled while it is decoded is resized once."""
    if geometry.scaled_first is None or decode == "fast":
        return _Way(resized, decode=decode)
    first = geometry.first_size(*size)
    return _Way(resized, None if first == size else first, like_torchvision=True)


def _load_resized(location: str, size: tuple[int, int], way: _Way) -> Image.Image:
    """The image upright at its size in the model, in RGB or in grey of 8 bits."""
    content = measure.read_all(location)
    with measure.opened(content, location) as image:
        found = image.height, image.width
        scale = _scale_down(image, way.resized) if way.decode == "fast" else 1
        measure.load(image, location)
        turn = measure.turn(image)
        if scale == 1:
            found = image.height, image.width  # of a TIFF that Pillow turns itself, only now
        _check_size(location, found[::-1] if turn in measure.SIDEWAYS else found, size)
        try:
            return _resize_upright(image, turn, way, scale)
        except Exception as error:
            raise _inconvertible(location, error) from error


def _inconvertible(location: str, error: Exception) -> ImageError:
    """For a mode that contradicts the pixels, in damaged files of rare formats."""
    return ImageError("image-unreadable", f"{location!r}: cannot be converted to RGB: {error}")


def _check_size(location: str, found: tuple[int, int], size: tuple[int, int]) -> None:
    if found != size:
        text = f"{found[0]} x {found[1]}, measured as {size[0]} x {size[1]}"
        raise ImageError(
            "image-unreadable", f"{location!r} is {text}: it changed since; start again to measure it again"
        )


def _scale_down(image: Image.Image, resized: tuple[int, int]) -> int:
    """Have a JPEG of at least twice the target's sides decoded at a half, a quarter or an eighth, whichever is the
    smallest that is no smaller than the target; returns by what its sides will be divided.
    """
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return 1
    height, width = resized[::-1] if measure.turn(image) in measure.SIDEWAYS else resized
    before = image.width
    image.draft(None, (width, height))
    return round(before / image.width)


def _resize_upright(image: Image.Image, turn: Image.Transpose | None, way: _Way, scale: int) -> Image.Image:
    """Turn, convert and resize, the resize as early as the result does not depend on it.

    Grey is resized as one channel, for the three of RGB would be equal. Mirroring and turning by 180 degrees commute
    with the resize; turning by 90 does not, as rows and columns are rounded one after the other.
    """
    if scale == 1 and turn in measure.SIDEWAYS and turn is not None:
        image, turn = image.transpose(turn), None
    if _is_deep_grey(image):
        image = deep_grey(image)
    elif image.mode != "L" or image.has_transparency_data:
        image = to_rgb(image)
    # After a halving, a linear kernel comes as near to the exact pixels as a cubic one within 1 dB, in half the time;
    # after a quartering it is 6 dB further off (benchmarks/fast_decode.py).
    kernel = Image.Resampling.BILINEAR if scale == 2 else Image.Resampling.BICUBIC
    image = _resized(image, way if turn not in measure.SIDEWAYS else _sideways(way), kernel)
    return image if turn is None else image.transpose(turn)


def _sideways(way: _Way) -> _Way:
    return replace(way, resized=way.resized[::-1], first=None if way.first is None else way.first[::-1])


def _resized(image: Image.Image, way: _Way, kernel: Image.Resampling) -> Image.Image:
    if way.first is not None:
        image = image.resize(way.first[::-1], kernel)
    if way.like_torchvision:
        return resize_like_torchvision(image, *way.resized)
    return image.resize(way.resized[::-1], kernel)


def resize(image: Image.Image, resized: tuple[int, int], geometry: Geometry) -> Image.Image:
    """Bicubic, to (height, width), as a file is resized in training."""
    return _resized(image, _way((image.height, image.width), resized, geometry), Image.Resampling.BICUBIC)


def patchify(image: Image.Image, geometry: Geometry) -> NDArray[np.uint8]:
    """Cut an image (RGB or L) into patches (P, 3 * p * p), in the order the family's vision towers expect.

    Patches that the merger joins lie next to each other; with a merge of 2, four columns of patches are numbered

        0 1 4 5
        2 3 6 7

    Args:
        image: sides are multiples of the geometry's factor.
        geometry: the model's patch arithmetic.
    """
    patch, merge = geometry.patch_size, geometry.merge_size
    rows, columns = image.height // geometry.factor, image.width // geometry.factor
    out = np.empty((rows * columns * merge**2, 3 * patch**2), np.uint8)
    # A line of a patch is one item: channel by channel such lines are copied whole.
    line = np.dtype(f"V{patch}")
    target = out.reshape(rows, columns, merge, merge, 3, patch, patch).view(line)[..., 0]
    for number, channel in enumerate(image.mode):
        lines = np.frombuffer(image.tobytes("raw", channel), line).reshape(rows, merge, patch, columns, merge)
        # rows, columns, rows in block, columns in block, channel, y
        channels = slice(number, number + 1) if len(image.mode) > 1 else slice(None)
        target[:, :, :, :, channels] = lines.transpose(0, 3, 1, 4, 2)[:, :, :, :, None]
    return out


def decode_images(
    sized: Sequence[SizedImage], geometry: Geometry, origin: Origin, decode: Decode = "exact"
) -> tuple[list[NDArray[np.uint8]], list[Problem]]:
    """Patches of each image of a sample, and a problem for each that does not decode."""
    found = [decode_image(image, number, geometry, origin, decode) for number, image in enumerate(sized, 1)]
    patches = [item for item in found if not isinstance(item, Problem)]
    return patches, [item for item in found if isinstance(item, Problem)]


def decode_image(
    image: SizedImage, number: int, geometry: Geometry, origin: Origin, decode: Decode = "exact"
) -> NDArray[np.uint8] | Problem:
    """Patches of the ``number``-th image of a sample, counted from 1, or why there are none."""
    size, resized = (image.height, image.width), (image.resized_height, image.resized_width)
    try:
        return load_patches(image.location, size, resized, geometry, decode)
    except ImageError as error:
        return Problem(error.code, origin, error.message, image=number)


def join(patches: Sequence[NDArray[np.uint8]], geometry: Geometry) -> NDArray[np.uint8]:
    """The patches of several images, one after the other; (0, 3 * p * p) for none."""
    return np.concatenate(patches) if patches else np.empty((0, 3 * geometry.patch_size**2), np.uint8)
