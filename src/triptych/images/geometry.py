"""Patch arithmetic: from an image's height and width to its resized size, patch grid and token count.

The only module that knows how pixels become patches and patches become language tokens. With Qwen2-VL's patch of
14 px and merge of 2, a 640 x 480 image (height 480, width 640) under ``max_pixels = 262,144`` goes

    480 x 640 px  ->  resized 420 x 588 px  ->  grid 30 x 42 patches  ->  15 x 21 = 315 tokens
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from triptych.sources.records import ImageLimits

MAX_ASPECT = 200
"""Longest side over shortest side beyond which the family's image processors refuse an image."""

SHORTEST = 28
"""Shortest side after LLaMA-Factory's resize, px, whatever the model's patch."""
FIXED_TOKENS = (4, 16384)
"""Tokens of an image whose size is given, at least and at most, as ``qwen_vl_utils`` has it."""
SQUEEZED = 180
"""Aspect ratio that LLaMA-Factory gives to an image of more than ``MAX_ASPECT``."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a model cuts images, and the pixel limits of one image."""

    patch_size: int
    """Side of a patch, px."""
    merge_size: int
    """Patches per side that the merger turns into one language token."""
    temporal_patch_size: int
    """Frames per patch; a still image is repeated this often on the device."""
    min_pixels: int
    max_pixels: int
    scaled_first: tuple[int, int] | None = None
    """(min, max) area of a resize before the model's own, as LLaMA-Factory does it (``first_size``); None for none."""

    @property
    def factor(self) -> int:
        """Side of the square of pixels behind one language token: resized sides are its multiples."""
        return self.patch_size * self.merge_size

    def limit(self, *, min_pixels: int | None = None, max_pixels: int | None = None) -> Geometry:
        """The same model with other pixel limits; None keeps a limit."""
        return replace(
            self,
            min_pixels=self.min_pixels if min_pixels is None else min_pixels,
            max_pixels=self.max_pixels if max_pixels is None else max_pixels,
        )

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width, px, that an image is resized to before it is cut into patches.

        Multiples of ``factor``, the aspect ratio kept as nearly as possible, the area within the pixel limits.
        Equal to ``smart_resize`` of transformers' Qwen2-VL image processors.

        Raises:
            ValueError: if the aspect ratio is over ``MAX_ASPECT``.
        """
        if is_extreme(height, width):
            raise ValueError(f"aspect ratio of {height} x {width} is over {MAX_ASPECT}")
        height, width = self.first_size(height, width)
        factor = self.factor
        resized_height = round(height / factor) * factor
        resized_width = round(width / factor) * factor
        if resized_height * resized_width > self.max_pixels:
            shrink = math.sqrt((height * width) / self.max_pixels)
            resized_height = max(factor, math.floor(height / shrink / factor) * factor)
            resized_width = max(factor, math.floor(width / shrink / factor) * factor)
        elif resized_height * resized_width < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            resized_height = math.ceil(height * grow / factor) * factor
            resized_width = math.ceil(width * grow / factor) * factor
        return resized_height, resized_width

    def asked(self, size: tuple[int, int], limits: ImageLimits | None) -> tuple[Geometry, tuple[int, int]]:
        """The arithmetic of one image, and the (height, width) that it starts from.

        The narrower place decides: a limit of an image that crosses the run's other limit moves that. A size that is
        given counts in place of the image's own, within the limits of Qwen's utilities.
        """
        if limits is None:
            return self, size
        if limits.height:
            fewest, most = (tokens * self.factor**2 for tokens in FIXED_TOKENS)
            return self.limit(min_pixels=fewest, max_pixels=most), (limits.height, limits.width)
        low, high = limits.min_pixels or self.min_pixels, limits.max_pixels or self.max_pixels
        if low > high:
            low, high = (low, low) if limits.min_pixels else (high, high)
        return self.limit(min_pixels=low, max_pixels=high), size

    def first_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width, px, that an image is scaled to before ``resized`` rounds them; its own without such a step.

        The rule of LLaMA-Factory (0.9.x): to the largest area, then to the smallest, sides cut to whole pixels; then no
        side below ``SHORTEST`` and no aspect over ``MAX_ASPECT``.
        """
        if self.scaled_first is None:
            return height, width
        smallest, largest = self.scaled_first
        if height * width > largest:
            height, width = _scaled(height, width, largest)
        if height * width < smallest:
            height, width = _scaled(height, width, smallest)
        height, width = max(height, SHORTEST), max(width, SHORTEST)
        if width / height > MAX_ASPECT:
            width = height * SQUEEZED
        if height / width > MAX_ASPECT:
            height = width * SQUEEZED
        return height, width

    def for_servers(self) -> Geometry:
        """What a server can do: one resize, whose limits come nearest."""
        if self.scaled_first is None:
            return self
        smallest, largest = self.scaled_first
        limits = max(self.min_pixels, smallest), min(self.max_pixels, largest)
        return replace(self, min_pixels=limits[0], max_pixels=limits[1], scaled_first=None)

    def grid(self, resized_height: int, resized_width: int) -> tuple[int, int, int]:
        """Patch grid (temporal, height, width) of a resized image."""
        return 1, resized_height // self.patch_size, resized_width // self.patch_size

    def tokens(self, resized_height: int, resized_width: int) -> int:
        """Language tokens that a resized image costs, its start and end marks not counted."""
        return (resized_height // self.factor) * (resized_width // self.factor)

    def shrunk(self, height: int, width: int, token_cap: int) -> tuple[int, int]:
        """Resized size under ``token_cap`` tokens, but never below ``min_pixels``.

        Rounding to whole tokens can undershoot ``min_pixels``; then the limit of this image is raised until it does
        not. A long thin image overshoots its limit, since its short side cannot go below one token; then the limit
        is lowered until it does not. The result is always what ``resized`` gives under some ``max_pixels``.
        """
        natural = self.resized(height, width)
        if self.tokens(*natural) <= token_cap:
            return natural

        def under(limit: int) -> tuple[int, int]:
            return self.limit(max_pixels=limit).resized(height, width)

        limit = min(token_cap * self.factor * self.factor, self.max_pixels)
        size = under(limit)
        if self.tokens(*size) > token_cap:
            fitting = bisect_right(range(1, limit + 1), token_cap, key=lambda limit: self.tokens(*under(limit)))
            size = under(max(1, fitting))
        if size[0] * size[1] < self.min_pixels:
            too_low = bisect_left(range(1, self.max_pixels), self.min_pixels, key=lambda limit: math.prod(under(limit)))
            size = under(too_low + 1)
        return size


def _scaled(height: int, width: int, area: int) -> tuple[int, int]:
    """Both sides times the same factor, so that the area is at most ``area``, cut to whole pixels."""
    scale = math.sqrt(area / (width * height))
    return int(height * scale), int(width * scale)


def is_extreme(height: int, width: int) -> bool:
    """Whether an image is too long and thin for the family."""
    return max(height, width) / min(height, width) > MAX_ASPECT


Limits = Sequence[ImageLimits | None]
"""What is asked of each image of a sample"""


def natural_sizes(
    sizes: Sequence[tuple[int, int]], geometry: Geometry, limits: Limits | None = None
) -> list[tuple[int, int]]:
    """(resized height, resized width) of images under the limits per image, px.

    Args:
        sizes: (height, width) of each, px, as measured.
        geometry: the model's patch arithmetic and the limits of the run.
        limits: what is asked of each; None where nothing is.
    """
    if limits is None:
        return [geometry.resized(*size) for size in sizes]
    asked = (geometry.asked(size, own) for size, own in zip(sizes, limits, strict=True))
    return [own.resized(*size) for own, size in asked]


def share_tokens(
    sizes: Sequence[tuple[int, int]], geometry: Geometry, budget: int, limits: Limits | None = None
) -> list[tuple[int, int]]:
    """Resize images so that together they cost at most ``budget`` tokens, if they can.

    Water-filling: one cap for all, as high as the budget allows. Images under the cap keep their size, the others
    shrink to it alike. For naturals of 300, 100 and 900 tokens and a budget of 800 the cap settles at 400:

        300 100 900  ->  300 100 400

    Args:
        sizes: (height, width) of each image, px, as measured.
        geometry: the model's patch arithmetic and the limits per image.
        budget: language tokens for all images together.
        limits: what is asked of each image; None where nothing is.

    Returns:
        (resized height, resized width) per image. Over ``budget`` only where ``min_pixels`` allows no less.
    """
    natural = natural_sizes(sizes, geometry, limits)
    costs = [geometry.tokens(*size) for size in natural]
    if sum(costs) <= budget:
        return natural

    asked = [geometry.asked(size, own) for size, own in zip(sizes, limits or [None] * len(sizes), strict=True)]

    def fill(cap: int) -> list[tuple[int, int]]:
        return [
            resized if cost <= cap else own.shrunk(*size, cap)
            for (own, size), resized, cost in zip(asked, natural, costs, strict=True)
        ]

    fits, too_high = 1, max(costs)
    best = fill(fits)
    while too_high - fits > 1:
        middle = (fits + too_high) // 2
        filled = fill(middle)
        if sum(geometry.tokens(*size) for size in filled) <= budget:
            fits, best = middle, filled
        else:
            too_high = middle
    return best


@dataclass(frozen=True, slots=True)
class SizedImage:
    """One image of a sample: where it is, its size in the file and its size in the model, px."""

    name: str
    """As the data names it."""
    location: str
    """As ``measure.open_bytes`` takes it."""
    height: int
    width: int
    resized_height: int
    resized_width: int
