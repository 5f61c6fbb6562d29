"""Examine every record of every source: parse, measure, tokenize, fit; what fails becomes a coded problem."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from triptych.data import images
from triptych.data.conversation import Conversation, ImageRef, parse
from triptych.data.geometry import Geometry
from triptych.data.images import ImageError, Measured
from triptych.data.layout import Budget, Fitted, Layout, TooLongError, fit, lay_out
from triptych.data.records import Record, Source, read_records
from triptych.data.template import Template
from triptych.errors import Problem, SampleError


@dataclass(frozen=True, slots=True)
class Reading:
    """How a model reads samples: its markup, its patch arithmetic, and the budgets of the run."""

    template: Template
    geometry: Geometry
    budget: Budget


@dataclass(frozen=True, slots=True)
class SizedImage:
    """One image of a sample: where it is, its size in the file and its size in the model, px."""

    ref: ImageRef
    media_root: str
    height: int
    width: int
    resized_height: int
    resized_width: int


@dataclass(frozen=True, slots=True)
class Sample:
    """A record that passed every check."""

    conversation: Conversation
    media_root: str
    measured: tuple[Measured, ...]
    fitted: Fitted | None
    """None where records are checked without a model."""

    def images(self) -> list[SizedImage]:
        """The images in reading order, with the size that the model gives them."""
        assert self.fitted is not None, "a sample examined without a model gives its images no size"
        return [
            SizedImage(ref, self.media_root, measured.height, measured.width, *resized)
            for ref, measured, resized in zip(self.conversation.images, self.measured, self.fitted.resized, strict=True)
        ]

    def layout(self, geometry: Geometry) -> Layout:
        """The sample as the model sees it."""
        assert self.fitted is not None, "a sample examined without a model has no layout"
        return lay_out(self.fitted.encoded, self.fitted.resized, geometry, self.conversation.origin)


@dataclass(slots=True)
class Census:
    """What an examination found: counts and every problem, in input order."""

    samples: int = 0
    """Records seen, good or not."""
    ok: int = 0
    shrunk: int = 0
    """Good samples whose images were made smaller to keep a budget of the sample."""
    problems: list[Problem] = field(default_factory=list)
    dropped: list[Problem] = field(default_factory=list)
    """Samples left out because the run says ``too_long: drop``; no error."""
    failed: dict[str, tuple[int, int] | None] = field(default_factory=dict)
    """Image files that could not be used, with their stamp: once one is mended, the census is out of date."""


class Examiner:
    """Examines records one by one; remembers measured files, so a picture used twice is read once."""

    def __init__(self, reading: Reading | None) -> None:
        self.reading = reading
        self.census = Census()
        self._measured: dict[str, Measured | ImageError] = {}

    def run(self, sources: Sequence[Source]) -> Iterator[tuple[Record | Problem, Sample | None]]:
        """Yield each element of the data files and, if it is good, its sample; keep count in ``census``.

        Raises:
            ConfigError: if a data file is missing or cannot be read.
        """
        files = [(source, path) for source in sources for path in source.files()]
        for source, path in files:
            for record in read_records(path):
                self.census.samples += 1
                yield record, self._admit(record, source)

    def _admit(self, record: Record | Problem, source: Source) -> Sample | None:
        if isinstance(record, Problem):
            self.census.problems.append(record)
            return None
        try:
            sample = self.examine(record, source)
        except SampleError as error:
            drops = self.reading is not None and self.reading.budget.too_long == "drop"
            dropped = drops and all(problem.code == "too-long" for problem in error.problems)
            (self.census.dropped if dropped else self.census.problems).extend(error.problems)
            return None
        self.census.ok += 1
        self.census.shrunk += sample.fitted is not None and sample.fitted.shrunk
        return sample

    def examine(self, record: Record, source: Source) -> Sample:
        """Parse, measure, tokenize and fit one record.

        Raises:
            SampleError: with every problem found.
        """
        conversation = parse(record, source)
        media_root = source.media_root(record.origin.path)
        measured = self._measure_all(conversation, media_root, source.confine)
        fitted = None
        if self.reading is not None:
            encoded = self.reading.template.encode(conversation)
            sizes = [(image.height, image.width) for image in measured]
            try:
                fitted = fit(encoded, sizes, self.reading.geometry, self.reading.budget)
            except TooLongError as error:
                raise SampleError([Problem("too-long", record.origin, str(error))]) from error
        return Sample(conversation, media_root, measured, fitted)

    def _measure_all(self, conversation: Conversation, media_root: str, confine: bool) -> tuple[Measured, ...]:
        measured: list[Measured] = []
        problems: list[Problem] = []
        for number, ref in enumerate(conversation.images, 1):
            try:
                measured.append(self._measure(images.locate(ref, media_root, confine)))
            except ImageError as error:
                problems.append(Problem(error.code, conversation.origin, error.message, image=number))
                self._remember_failed(ref, media_root)
        if problems:
            raise SampleError(problems)
        return tuple(measured)

    def _remember_failed(self, ref: ImageRef, media_root: str) -> None:
        if ref.source.startswith("data:"):
            return  # mended in the data file itself
        with suppress(ImageError):  # likewise a remote address
            location = os.path.abspath(images.locate(ref, media_root, confine=False))
            self.census.failed[location] = images.stamp(location)

    def _measure(self, location: str) -> Measured:
        known = self._measured.get(location)
        if known is None:
            try:
                known = images.measure(location)
            except ImageError as error:
                known = error
            if not location.startswith("data:"):
                self._measured[location] = known
        if isinstance(known, ImageError):
            raise ImageError(known.code, known.message)
        return known
