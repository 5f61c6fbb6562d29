"""Conversations as ids, with one pad per image: what an index keeps, and what the limits of a run are applied to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

NO_BOXES = np.empty((0, 4), np.float64)


@dataclass(frozen=True, slots=True)
class Encoded:
    """One conversation as ids, with exactly **one** ``<|image_pad|>`` per image; U is its number of tokens."""

    ids: NDArray[np.int32]
    """(U,)"""
    weights: NDArray[np.float32]
    """(U,) how much the id counts in the loss; 0 where it is no target."""
    slots: NDArray[np.int32]
    """(N,) index into ``ids`` of the pad of each image, in reading order."""
    boxes: NDArray[np.float64] = field(default_factory=lambda: NO_BOXES)
    """(B, 4) the coordinates of boxes that are to be filled in; see ``boxes.py``"""

    @property
    def supervised(self) -> NDArray[np.bool_]:
        """(U,) whether the id is a target."""
        return self.weights > 0


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """C conversations as ids, end to end; each kind of value with its (C + 1,) bounds."""

    ids: NDArray[np.int32]
    id_bounds: NDArray[np.int32]
    spans: NDArray[np.int32]
    """[start, end) pairs of targets, flat, counted within their conversation"""
    span_bounds: NDArray[np.int32]
    weights: NDArray[np.float32]
    """How much the targets of each pair count in the loss"""
    slots: NDArray[np.int32]
    """Index of the pad of each image within its conversation"""
    slot_bounds: NDArray[np.int32]
    thinking_dropped: NDArray[np.int32]
    """(C,) answers whose thinking the chat template leaves out, since a later question follows"""
    control_texts: NDArray[np.int32]
    """(C,) strings of control tokens that the data holds; they were taken as text"""
    boxes: NDArray[np.float64] = field(default_factory=lambda: NO_BOXES)
    """(B, 4) coordinates of boxes"""
    box_bounds: NDArray[np.int32] | None = None
    """(C + 1,) None where no conversation has a box"""

    def __len__(self) -> int:
        return len(self.id_bounds) - 1

    def __getitem__(self, number: int) -> Encoded:
        def piece(values: NDArray[np.int32], bounds: NDArray[np.int32]) -> NDArray[np.int32]:
            return values[bounds[number] : bounds[number + 1]]

        ids = piece(self.ids, self.id_bounds)
        spans = piece(self.spans, self.span_bounds)
        first, last = self.span_bounds[number] // 2, self.span_bounds[number + 1] // 2
        weights = target_weights(spans, self.weights[first:last], len(ids))
        boxes = NO_BOXES
        if self.box_bounds is not None:
            boxes = self.boxes[self.box_bounds[number] : self.box_bounds[number + 1]]
        return Encoded(ids, weights, piece(self.slots, self.slot_bounds), boxes)


def target_weights(spans: NDArray[np.int32], weights: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """(length,) weight of each id in the loss, of [start, end) pairs and the weight of each; 0 outside of them."""
    found = np.zeros(length, np.float32)
    for start, end, weight in zip(spans[::2].tolist(), spans[1::2].tolist(), weights.tolist(), strict=True):
        found[start:end] = weight
    return found


Segment = tuple[Sequence[int] | None, int, float, bool]
"""A piece of a rendered conversation: its ids or None, else the number of its text; its weight; whether image."""


def assemble(
    rendered: Sequence[Sequence[Segment]],
    texts: Sequence[Sequence[int]],
    thinking_dropped: Sequence[int],
    typed: Sequence[int],
) -> EncodedBatch:
    """Put the segments of conversations together; boxes are added by the caller.

    Args:
        rendered: the segments of each conversation.
        texts: ids of each text that segments name by number.
        thinking_dropped: see ``EncodedBatch``.
        typed: strings of control tokens of each.
    """
    ids: list[int] = []
    spans: list[int] = []
    weights: list[float] = []
    slots: list[int] = []
    bounds = [(0, 0, 0)]
    for segments in rendered:
        begin = len(ids)
        open_span, current = 0, 0.0
        for fixed, number, weight, image in segments:
            start = len(ids) - begin
            if image:
                slots.append(start + 1)
            if weight != current:  # neighbouring targets of one weight are one span
                if current:
                    spans += (open_span, start)
                    weights.append(current)
                open_span, current = max(start, 1), weight  # nothing comes before a sample's first id to predict it
            ids += texts[number] if fixed is None else fixed
        if current:
            spans += (open_span, len(ids) - begin)
            weights.append(current)
        bounds.append((len(ids), len(spans), len(slots)))
    id_bounds, span_bounds, slot_bounds = np.array(bounds, np.int32).T
    return EncodedBatch(
        np.array(ids, np.int32),
        id_bounds,
        np.array(spans, np.int32),
        span_bounds,
        np.array(weights, np.float32),
        np.array(slots, np.int32),
        slot_bounds,
        np.array(thinking_dropped, np.int32),
        np.array(typed, np.int32),
    )
