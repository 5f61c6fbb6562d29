"""Lay one sample out as the model sees it: expanded ids, targets, M-RoPE positions, patch grids, within the budgets.

Shapes, here and in ``batch.py``: T tokens, U tokens with one per image, N images, P patches, S supervised tokens.

One image of 2 x 3 tokens between two words; temporal, height and width positions:

    ids          a  <start>  #  #  #  #  #  #  <end>  b
    temporal     0     1     2  2  2  2  2  2    5    6
    height       0     1     2  2  2  3  3  3    5    6
    width        0     1     2  3  4  2  3  4    5    6

The text goes on at the image's start plus its longer side in tokens (2 + 3), as ``get_rope_index`` counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from triptych.errors import Origin
from triptych.images.geometry import Geometry, Limits, natural_sizes, share_tokens
from triptych.text.box_filling import fill_boxes
from triptych.text.tokens.encoded import Encoded

TooLong = Literal["shrink", "drop", "error", "cut_text"]


@dataclass(frozen=True, slots=True)
class Layout:
    """One sample exactly as the model will see it."""

    input_ids: NDArray[np.int64]
    """(T,)"""
    weights: NDArray[np.float32]
    """(T,) how much the id counts in the loss; 0 where it is no target."""
    position_ids: NDArray[np.int64]
    """(3, T) temporal, height, width"""
    grids: NDArray[np.int64]
    """(N, 3) patches: temporal, height, width"""
    origin: Origin

    @property
    def supervised(self) -> NDArray[np.bool_]:
        """(T,) whether the id is a target."""
        return self.weights > 0


@dataclass(frozen=True, slots=True)
class Budget:
    """What one sample may cost; None is no limit."""

    max_tokens: int | None = None
    """Language tokens, images included."""
    image_tokens: int | None = None
    """Language tokens of all images together."""
    too_long: TooLong = "shrink"


@dataclass(frozen=True, slots=True)
class Fitted:
    """A sample brought within its budget."""

    encoded: Encoded
    resized: list[tuple[int, int]]
    """(height, width) per image, px"""
    shrunk: bool
    """Whether images were made smaller than their own limits allow, to keep a budget of the sample."""


class TooLongError(Exception):
    """A sample that no permitted means brings within its budget."""


FITS = 8
"""How often boxes are filled in again where their digits and the sizes of images decide about each other."""


def fit(
    encoded: Encoded,
    sizes: Sequence[tuple[int, int]],
    geometry: Geometry,
    budget: Budget,
    limits: Limits | None = None,
) -> Fitted:
    """Choose the size of every image so that the sample keeps its budgets; no image is ever cut. Boxes are filled in.

    Args:
        encoded: the conversation with one id per image.
        sizes: measured (height, width) per image, px.
        geometry: the model's patch arithmetic and the limits per image.
        budget: the limits per sample and what may be done to keep ``max_tokens``.
        limits: what is asked of each image; None where nothing is.

    Raises:
        TooLongError: with the reason, if the sample stays over ``max_tokens`` or ``image_tokens``.
    """
    if len(encoded.boxes):
        return _fit_boxes(encoded, sizes, geometry, budget, limits)
    text_tokens = len(encoded.ids) - len(sizes)
    natural = natural_sizes(sizes, geometry, limits)
    share = budget.image_tokens
    if budget.max_tokens is not None and budget.too_long in ("shrink", "cut_text"):
        room = max(0, budget.max_tokens - text_tokens)
        share = room if share is None else min(share, room)
    resized = natural if share is None else share_tokens(sizes, geometry, share, limits)
    image_tokens = sum(geometry.tokens(*size) for size in resized)
    if budget.image_tokens is not None and image_tokens > budget.image_tokens:
        raise TooLongError(
            f"its {len(sizes)} images cost {image_tokens:,} tokens even at min_pixels, over the limit of "
            f"{budget.image_tokens:,}; raise sample_image_tokens or batch.patches, or lower min_pixels"
        )
    total = text_tokens + image_tokens
    if budget.max_tokens is not None and total > budget.max_tokens:
        excess = total - budget.max_tokens
        if budget.too_long == "cut_text":
            encoded = _cut_text(encoded, excess)
        else:
            raise TooLongError(_over(total, text_tokens, image_tokens, budget))
    return Fitted(encoded, resized, resized != natural)


def _fit_boxes(
    encoded: Encoded, sizes: Sequence[tuple[int, int]], geometry: Geometry, budget: Budget, limits: Limits | None
) -> Fitted:
    """Smaller images have shorter coordinates, which leave more room for images: fit until nothing changes."""
    natural = natural_sizes(sizes, geometry, limits)
    resized = natural
    for _ in range(FITS):
        try:
            fitted = fit(fill_boxes(encoded, sizes, resized), sizes, geometry, budget, limits)
        except TooLongError:
            smallest = share_tokens(sizes, geometry, 0, limits)
            if resized == smallest:
                raise
            resized = smallest
            continue
        if fitted.resized == resized:
            return fitted
        before, resized = resized, fitted.resized
    # Two sizes that lead to each other: the text of the smaller images is the shorter one, so they fit with it.
    resized = min(before, resized, key=lambda found: sum(geometry.tokens(*size) for size in found))
    return Fitted(fill_boxes(encoded, sizes, resized), resized, resized != natural)


def _over(total: int, text_tokens: int, image_tokens: int, budget: Budget) -> str:
    found = f"{total:,} tokens ({text_tokens:,} text, {image_tokens:,} image), over max_tokens of {budget.max_tokens:,}"
    if budget.too_long == "shrink":
        return f"{found} even with every image at min_pixels; raise max_tokens or lower min_pixels"
    return f"{found}; raise max_tokens, lower max_pixels, or set too_long: shrink"


def _cut_text(encoded: Encoded, excess: int) -> Encoded:
    """Drop ``excess`` tokens of text from the end; an image, or the last target, is never dropped."""
    kept = len(encoded.ids) - excess
    last_image = int(encoded.slots[-1]) + 2 if len(encoded.slots) else 0  # its end mark is kept with it
    if kept < last_image or not encoded.supervised[: max(kept, 0)].any():
        raise TooLongError(f"cutting {excess:,} tokens off its end would cut an image or leave no answer")
    return Encoded(encoded.ids[:kept], encoded.weights[:kept], encoded.slots)


def lay_out(encoded: Encoded, resized: Sequence[tuple[int, int]], geometry: Geometry, origin: Origin) -> Layout:
    """Expand each image's single pad to its tokens and give every token its positions."""
    grids = np.array([geometry.grid(*size) for size in resized], np.int64).reshape(-1, 3)
    counts = np.array([geometry.tokens(*size) for size in resized], np.int64)
    repeats = np.ones(len(encoded.ids), np.int64)
    repeats[encoded.slots] = counts
    return Layout(
        input_ids=np.repeat(encoded.ids, repeats).astype(np.int64),
        weights=np.repeat(encoded.weights, repeats),
        position_ids=mrope_positions(len(encoded.ids), encoded.slots, grids[:, 1:] // geometry.merge_size),
        grids=grids,
        origin=origin,
    )


def mrope_positions(length: int, slots: NDArray[np.int32], sides: NDArray[np.int64]) -> NDArray[np.int64]:
    """M-RoPE positions (3, T) of a sample (Wang et al. 2024, Qwen2-VL, section 2.1; ``get_rope_index``).

    Args:
        length: U, tokens with one per image.
        slots: (N,) index of each image's token among the U.
        sides: (N, 2) height and width of each image, tokens.
    """
    pieces: list[NDArray[np.int64]] = []
    position = 0
    done = 0
    for slot, (height, width) in zip(slots.tolist(), sides.tolist(), strict=True):
        text = np.arange(position, position + slot - done, dtype=np.int64)
        position += slot - done
        pieces.append(np.broadcast_to(text, (3, len(text))))
        image = np.empty((3, height, width), np.int64)
        image[0] = position
        image[1] = position + np.arange(height)[:, None]
        image[2] = position + np.arange(width)
        pieces.append(image.reshape(3, -1))
        position += max(height, width)
        done = slot + 1
    text = np.arange(position, position + length - done, dtype=np.int64)
    pieces.append(np.broadcast_to(text, (3, len(text))))
    # A single broadcast piece would come out of `concatenate` in column order, which orjson cannot write.
    return np.ascontiguousarray(np.concatenate(pieces, axis=1))
