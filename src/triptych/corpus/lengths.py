"""Lengths from an index, the sizes of its images and the limits of a run: integers, and what is over a budget."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from triptych.corpus.examine import CheckReport, Encoder
from triptych.corpus.image_sizes import Sizes
from triptych.corpus.index import Index
from triptych.errors import Problem
from triptych.images.geometry import Geometry, Limits, natural_sizes
from triptych.images.measure import ImageError
from triptych.text.box_filling import outside
from triptych.text.layout import TooLongError, fit
from triptych.text.tokens.encoded import Encoded, target_weights

LENGTHS = pa.schema(
    [
        ("sample", pa.int64()),  # number in the index
        ("source", pa.int32()),
        ("images", pa.int32()),
        ("tokens", pa.int64()),
        ("patches", pa.int64()),
        ("supervised", pa.int64()),
    ]
)
"""One row per good sample."""
STORED = ("ids", "spans", "weights", "boxes", "slots")
"""Columns of the index that hold the text of a sample."""


def stored_encoding(index: Index, sample: int) -> Encoded:
    """The ids of a sample with one per image, as its text asks for."""
    ids, spans, weights, boxes, slots = (index.value(name, sample).values.to_numpy() for name in STORED)
    return Encoded(ids, target_weights(spans, weights, len(ids)), slots, boxes.reshape(-1, 4))


def resized_images(index: Index, measured: NDArray[Any], geometry: Geometry, of_sources: Limits) -> NDArray[np.int64]:
    """(I, 2) height and width of each image under the limits per image, px; 0 where its size is not known.

    The arithmetic runs once per distinct size and limits.

    Args:
        index: knows what records ask of their images.
        measured: (I, 2) height and width of each image, px; 0 where it is not known.
        geometry: the model's patch arithmetic and the limits of the run.
        of_sources: what each source asks.
    """
    kinds, limits = index.limit_kinds(of_sources)
    packed = measured[:, 0].astype(np.int64) << 32 | measured[:, 1]
    found = np.zeros((len(packed), 2), np.int64)
    for kind, asked in enumerate(limits):
        chosen = np.flatnonzero(kinds == kind)
        distinct, places = np.unique(packed[chosen], return_inverse=True)
        sizes = [(size >> 32, size & 0xFFFFFFFF) for size in distinct.tolist()]
        resized = [natural_sizes([size], geometry, [asked])[0] if size[0] else (0, 0) for size in sizes]
        found[chosen] = np.array(resized, np.int64).reshape(-1, 2)[places]
    return found


@dataclass(slots=True)
class SampleLengths:
    """Sums up each sample's tokens; only those over a budget are looked at one by one."""

    index: Index
    sizes: Sizes
    encoder: Encoder | None
    limits: Limits
    """What each source asks of the size of its images"""
    found: list[tuple[int, Problem]] = field(default_factory=list)
    dropped: list[Problem] = field(default_factory=list)
    shrunk: int = 0
    thinking_dropped: int = 0
    control_texts: int = 0
    weighted: int = 0
    ok: int = 0

    def run(self) -> list[pa.Array]:
        """The columns of ``LENGTHS``."""
        image_tokens = self._natural_tokens()
        columns: list[list[NDArray[Any]]] = [[np.empty(0, kind.type.to_pandas_dtype())] for kind in LENGTHS]
        columns_of_text = ("supervised_images", "thinking_dropped", "control_texts")
        for start, file, first_image, (
            images,
            ids,
            weights,
            boxes,
            supervised,
            learned,
            *counts_of_text,
        ) in self.index.sample_batches("images", "ids", "weights", "boxes", "supervised", *columns_of_text):
            numbers, offsets = images.values.to_numpy() + first_image, images.offsets.to_numpy()
            counts = np.diff(offsets)
            pixels = _sums(image_tokens[numbers], offsets)
            text = np.diff(ids.offsets.to_numpy()) - (counts if self.encoder else 0)
            targets = supervised.to_numpy() + _more_targets(learned.to_numpy(), counts, pixels)
            good = _sums(self.sizes.bad[numbers], offsets) == 0
            for place in np.flatnonzero(~good).tolist():
                self._report_images(start + place, numbers[offsets[place] : offsets[place + 1]])
            boxed = np.diff(boxes.offsets.to_numpy()) > 0
            for place in np.flatnonzero(good & (self._over(text, pixels) | boxed)).tolist():
                found = self._fit(start + place, numbers[offsets[place] : offsets[place + 1]])
                if found is None:
                    good[place] = False
                else:
                    text[place], pixels[place], targets[place] = found
            self.ok += int(good.sum())
            thinking_dropped, control_texts = (int(column.to_numpy()[good].sum()) for column in counts_of_text)
            self.thinking_dropped += thinking_dropped
            self.control_texts += control_texts
            self.weighted += int((good & (_sums(weights.values.to_numpy() != 1, weights.offsets.to_numpy()) > 0)).sum())
            merge = self.encoder.geometry.merge_size if self.encoder else 1
            values = (
                np.arange(start, start + len(good)),
                np.full(len(good), self.index.files[file].source),
                counts,
                text + pixels,
                pixels * merge**2,
                targets,
            )
            for column, value in zip(columns, values, strict=True):
                column.append(value[good])
        return [pa.array(np.concatenate(column), kind.type) for column, kind in zip(columns, LENGTHS, strict=True)]

    def report(self) -> CheckReport:
        """What was found, in input order."""

        def place(item: tuple[int, Problem]) -> tuple[int, float, int]:
            number, problem = item
            return (
                number,
                problem.origin.line or np.inf,
                problem.origin.item,
            )  # what concerns a file as a whole comes after its records

        problems = [problem for _, problem in sorted([*self.index.problems, *self.found], key=place)]
        counts = self.index.records, self.ok, self.shrunk, self.thinking_dropped, self.control_texts, self.weighted
        return CheckReport(*counts, problems, self.dropped)

    def _natural_tokens(self) -> NDArray[np.int64]:
        """(I,) tokens of each image under the limits per image; the arithmetic runs once per distinct size."""
        if self.encoder is None:
            return np.zeros(len(self.sizes.bad), np.int64)
        measured = np.stack((self.sizes.height, self.sizes.width), axis=1)
        sizes = resized_images(self.index, measured, self.encoder.geometry, self.limits)
        found: NDArray[np.int64] = (sizes // self.encoder.geometry.factor).prod(axis=1)
        return found

    def _over(self, text: NDArray[np.int64], pixels: NDArray[np.int64]) -> NDArray[np.bool_]:
        over = np.zeros(len(text), np.bool_)
        if self.encoder is not None:
            budget = self.encoder.budget
            if budget.image_tokens is not None:
                over |= pixels > budget.image_tokens
            if budget.max_tokens is not None:
                over |= text + pixels > budget.max_tokens
        return over

    def _fit(self, sample: int, numbers: NDArray[np.int64]) -> tuple[int, int, int] | None:
        """(text tokens, image tokens, targets) of a sample over its budget, or with boxes; None if nothing helps."""
        encoded = stored_encoding(self.index, sample)
        measured = list(zip(self.sizes.height[numbers].tolist(), self.sizes.width[numbers].tolist(), strict=True))
        wrong = outside(encoded.boxes, measured)
        if wrong is not None:
            problem = Problem("box-outside", self.index.origin(sample), wrong[1], image=wrong[0] + 1)
            self.found.append((self.index.file_of(sample), problem))
            return None
        if self.encoder is None:
            return 0, 0, 0
        try:
            limits = [self.index.image_limits(number, self.limits) for number in numbers.tolist()]
            fitted = fit(encoded, measured, self.encoder.geometry, self.encoder.budget, limits)
        except TooLongError as error:
            drops = self.encoder.budget.too_long == "drop"
            problem = Problem("too-long", self.index.origin(sample), str(error))
            if drops:
                self.dropped.append(problem)
            else:
                self.found.append((self.index.file_of(sample), problem))
            return None
        self.shrunk += fitted.shrunk
        tokens = sum(self.encoder.geometry.tokens(*size) for size in fitted.resized)
        supervised = fitted.encoded.supervised
        learned = int(supervised[fitted.encoded.slots].sum())
        targets = int(supervised.sum()) + int(_more_targets(*map(np.array, (learned, len(measured), tokens))))
        return len(fitted.encoded.ids) - len(measured), tokens, targets

    def _report_images(self, sample: int, numbers: NDArray[np.int64]) -> None:
        origin = self.index.origin(sample)
        for place, number in enumerate(numbers.tolist(), 1):
            error: ImageError | None = self.sizes.errors.get(number)
            if error is not None:
                problem = Problem(error.code, origin, error.message, image=place)
                self.found.append((self.index.file_of(sample), problem))


def _more_targets(learned: NDArray[Any], images: NDArray[Any], tokens: NDArray[Any]) -> NDArray[np.int64]:
    """Targets that come to those counted with one token per image, where ``learned`` of the images are targets; of a
    sample that learns some of its images only, by their mean size."""
    share = learned / np.maximum(images, 1)
    more: NDArray[np.int64] = np.rint(tokens * share).astype(np.int64) - learned
    return more


def _sums(values: NDArray[Any], offsets: NDArray[np.int32]) -> NDArray[np.int64]:
    """Sum of each list that ``offsets`` bound; a list may be empty."""
    running = np.concatenate(([0], np.cumsum(values, dtype=np.int64)))
    result: NDArray[np.int64] = running[offsets[1:]] - running[offsets[:-1]]
    return result
