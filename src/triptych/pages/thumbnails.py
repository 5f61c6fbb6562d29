"""Small copies of images inside a page, within a budget of bytes: as stored, and as the model sees them."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from PIL import Image, JpegImagePlugin

from triptych.images import measure, pixels
from triptych.images.geometry import SizedImage
from triptych.images.measure import ImageError

THUMBNAIL_PX = 168
SMALL_PX = 112
"""Of pages with many images."""
DETAIL_PX = 672
QUALITY = 72
FEW, MOST = 900, 2600
"""Images that get thumbnails of the full size, and of any."""


@dataclass(frozen=True, slots=True)
class Views:
    """Copies of one image as data URIs."""

    thumb: str
    stored: str
    """Upright, as in the file, its longer side at most ``DETAIL_PX``"""
    model: str
    """Resized as the model takes it, its longer side at most ``DETAIL_PX``"""


def add_images(images: Sequence[tuple[dict[str, Any], SizedImage]], budget: int, *, workers: int = 4) -> None:
    """Add copies to the fields of images: thumbnails, and larger copies of the first ones as long as ``budget`` lasts.

    An image that does not decode gets ``error`` instead. Equal images are decoded once.

    Args:
        images: (fields of a card's image, image), the most important ones first.
        budget: characters that all copies may take.
        workers: threads that decode.
    """
    distinct = list(dict.fromkeys(_key(image) for _, image in images))[:MOST]
    side = THUMBNAIL_PX if len(distinct) <= FEW else SMALL_PX
    with ThreadPoolExecutor(workers) as pool:
        found = dict(zip(distinct, pool.map(lambda key: _views(key, side), distinct), strict=True))
    uses = Counter(_key(image) for _, image in images)  # a page holds a copy at every place
    budget -= sum(uses[key] * len(views.thumb) for key, views in found.items() if isinstance(views, Views))
    for fields, image in images:
        views = found.get(_key(image), "no copy: this page holds too many images")
        if isinstance(views, str):
            fields["error"] = views
            continue
        fields["thumb"] = views.thumb
        cost = len(views.stored) + len(views.model)
        if cost <= budget:
            budget -= cost
            fields["stored"], fields["model"] = views.stored, views.model


def _key(image: SizedImage) -> tuple[str, int, int]:
    return image.location, image.resized_height, image.resized_width


def _views(key: tuple[str, int, int], side: int) -> Views | str:
    location, height, width = key
    try:
        image = upright(location, DETAIL_PX)
    except ImageError as error:
        return error.message
    stored = _fitted(image, DETAIL_PX)
    scale = min(1.0, DETAIL_PX / max(height, width))
    shown = (max(1, round(width * scale)), max(1, round(height * scale)))
    # Down to the model's size in one step, as training does; a view that is smaller still is for the page alone.
    model = image.resize((width, height), Image.Resampling.BICUBIC) if scale == 1 else image.resize(shown)
    return Views(_encoded(_fitted(image, side)), _encoded(stored), _encoded(model))


def upright(location: str, side: int) -> Image.Image:
    """The image upright and in RGB, decoded at no more than needed for a copy of ``side`` px.

    Raises:
        ImageError: ``image-missing`` or ``image-unreadable``.
    """
    with measure.open_bytes(location) as file:
        content = io.BytesIO(file.read())
    with measure.opened(content, location) as image:
        if isinstance(image, JpegImagePlugin.JpegImageFile):
            image.draft(None, (2 * side, 2 * side))
        measure.load(image, location)
        turn = measure.turn(image)
        return pixels.to_rgb(image if turn is None else image.transpose(turn))


def _fitted(image: Image.Image, side: int) -> Image.Image:
    copy = image.copy()
    copy.thumbnail((side, side))
    return copy


def _encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
