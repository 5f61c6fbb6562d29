"""Decode one image straight to the patches a model takes, as bytes; no torch, no float."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from triptych.data import images
from triptych.data.geometry import Geometry
from triptych.data.images import ImageError
from triptych.data.samples import SizedImage
from triptych.errors import Origin, Problem


def load_rgb(location: str) -> Image.Image:
    """Decode an image upright and in RGB.

    EXIF orientation is applied; transparency is composited on white (as vLLM does when it serves the family); 16-bit
    grey is scaled to 8 bits by its high byte, as Pillow itself does with 16-bit colour.

    Raises:
        ImageError: ``image-missing`` or ``image-unreadable``.
    """
    with images.open_bytes(location) as file:
        content = io.BytesIO(file.read())
    with images.opened(content, location) as image:
        images.load(image, location)
        try:
            return to_rgb(images.upright(image))
        except Exception as error:  # a mode that contradicts the pixels, in damaged files of rare formats
            message = f"{location!r}: cannot be converted to RGB: {error}"
            raise ImageError("image-unreadable", message) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode that Pillow reads, floating point excepted, as RGB."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # I;16, I;16B, I: one channel of 16 bits
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        high_byte = values >> 8
        high_byte[values == image.info.get("transparency", -1)] = 255
        return Image.fromarray(high_byte.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


def load_patches(
    location: str, size: tuple[int, int], resized: tuple[int, int], geometry: Geometry
) -> NDArray[np.uint8]:
    """Patches (P, 3 * p * p) of an image file.

    Args:
        location: path or data URI.
        size: (height, width) as measured; a file that no longer has it was changed since.
        resized: (height, width) to resize to, px.
        geometry: the model's patch arithmetic.

    Raises:
        ImageError: ``image-missing`` or ``image-unreadable``.
    """
    image = load_rgb(location)
    if (image.height, image.width) != size:
        found = f"{image.height} x {image.width}, measured as {size[0]} x {size[1]}"
        raise ImageError(
            "image-unreadable", f"{location!r} is {found}: it changed since; start again to measure it anew"
        )
    return patchify(resize(image, resized), geometry)


def resize(image: Image.Image, resized: tuple[int, int]) -> NDArray[np.uint8]:
    """One bicubic resize to (height, width); returns (height, width, 3)."""
    height, width = resized
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def patchify(pixels: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    """Cut (height, width, 3) into patches (P, 3 * p * p), in the order the family's vision towers expect.

    Patches that the merger joins lie next to each other; with a merge of 2, four columns of patches are numbered

        0 1 4 5
        2 3 6 7
    """
    patch, merge = geometry.patch_size, geometry.merge_size
    height, width, channels = pixels.shape
    blocks = pixels.reshape(height // geometry.factor, merge, patch, width // geometry.factor, merge, patch, channels)
    # rows, columns, rows in block, columns in block, channel, y, x
    return blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, channels * patch * patch)


def decode_images(
    sized: Sequence[SizedImage], geometry: Geometry, origin: Origin
) -> tuple[list[NDArray[np.uint8]], list[Problem]]:
    """Patches of each image of a sample, and a problem for each that does not decode."""
    found = [decode_image(image, number, geometry, origin) for number, image in enumerate(sized, 1)]
    patches = [item for item in found if not isinstance(item, Problem)]
    return patches, [item for item in found if isinstance(item, Problem)]


def decode_image(image: SizedImage, number: int, geometry: Geometry, origin: Origin) -> NDArray[np.uint8] | Problem:
    """Patches of the ``number``-th image of a sample, counted from 1, or why there are none."""
    size, resized = (image.height, image.width), (image.resized_height, image.resized_width)
    try:
        return load_patches(image.location, size, resized, geometry)
    except ImageError as error:
        return Problem(error.code, origin, error.message, image=number)


def join(patches: Sequence[NDArray[np.uint8]], geometry: Geometry) -> NDArray[np.uint8]:
    """The patches of several images, one after the other; (0, 3 * p * p) for none."""
    return np.concatenate(patches) if patches else np.empty((0, 3 * geometry.patch_size**2), np.uint8)
