"""Examine records: parse, tokenize, find the images. One shard of a data file at a time, in whatever process."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, fields, replace
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from triptych.errors import DataError, Problem, SampleError
from triptych.images import identity
from triptych.images.geometry import Geometry
from triptych.sources import readers, records
from triptych.sources.records import Shard, Source
from triptych.text.box_filling import coordinates, counted
from triptych.text.conversation import Conversation, ConversationReader
from triptych.text.layout import Budget
from triptych.text.template import EncodedBatch, Template
from triptych.text.tokens.encoded import NO_BOXES

SCHEMA = pa.schema(
    [
        ("ids", pa.list_(pa.int32())),  # (U,) one id per image
        ("spans", pa.list_(pa.int32())),  # supervised [start, end) pairs among the U, flat
        ("weights", pa.list_(pa.float32())),  # of each pair in the loss, that of its source aside
        ("boxes", pa.list_(pa.float64())),  # coordinates: index among the U, image, kind, value; see boxes.py
        ("slots", pa.list_(pa.int32())),  # (N,) index of each image among the U
        ("images", pa.list_(pa.int64())),  # (N,) number of each image in the table of images
        ("supervised", pa.int64()),
        (
            "supervised_images",
            pa.int32(),
        ),  # whose tokens are targets; one of each is counted above
        ("thinking_dropped", pa.int32()),  # answers whose thinking the chat template leaves out
        ("control_texts", pa.int32()),  # strings of control tokens that were taken as text
        ("line", pa.int64()),
        ("at", pa.int64()),  # line of the file, of elements of an array; see Origin
        ("item", pa.int32()),
        ("task", pa.string()),
    ]
)
"""One row per record that reads well; its images are not looked at yet."""

DIGEST = 16
"""Bytes of the hash that tells images apart."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """How samples become what a model reads: its markup, its patch arithmetic, and the budgets of the run."""

    template: Template
    geometry: Geometry
    budget: Budget
    identity: str = ""
    """What of the model's files decides the ids, as a hash: an index is read again only under the same."""


@dataclass(slots=True)
class CheckReport:
    """What was found in the data: counts and every problem, in input order."""

    samples: int = 0
    """Records seen, good or not."""
    ok: int = 0
    shrunk: int = 0
    """Good samples whose images were made smaller to keep a budget of the sample."""
    thinking_dropped: int = 0
    """Answers of good samples whose thinking the chat template leaves out, since a later question follows."""
    control_texts: int = 0
    """Strings of control tokens in good samples (``<|im_end|>``, ``<|image_pad|>``) that were taken as text."""
    weighted: int = 0
    """Good samples in which some target has another weight in the loss than 1, by the record itself."""
    problems: list[Problem] = field(default_factory=list)
    dropped: list[Problem] = field(default_factory=list)
    """Samples left out because the run says ``too_long: drop``; no error."""
    hints: list[str] = field(default_factory=list)
    """What would help with many problems at once: where missing images lie."""

    def raise_for_problems(self) -> None:
        """Do nothing if all is well.

        Raises:
            DataError: with every problem.
        """
        if self.problems:
            raise DataError(self.problems, self.hints)

    def plus(self, other: CheckReport) -> CheckReport:
        """Both reports as one, the other's problems after these."""
        return CheckReport(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(self)))


@dataclass(frozen=True, slots=True)
class Task:
    """One shard to examine."""

    source: int
    """Number of its source."""
    file: int
    """Number of its data file, over all sources."""
    shard: Shard


@dataclass(frozen=True, slots=True)
class Examined:
    """What one shard holds. Lines are counted from the start of the shard, images are numbered within it."""

    task: Task
    count: int
    """Lines of the shard: what the lines of the next one start from."""
    records: int
    """Records seen, good or not."""
    samples: pa.RecordBatch
    """Columns of ``SCHEMA``."""
    names: list[str]
    """Distinct images in order of first use, as the data names them."""
    locations: list[str]
    limits: list[tuple[int, ...]]
    """What a record asks of the size of each, as ``ImageLimits``; empty where nothing is"""
    digests: bytes
    """Hash of each distinct image's location, name and limits, one after the other."""
    problems: list[Problem]


class Examiner:
    """Reads a shard and examines its records; travels to other processes."""

    def __init__(self, sources: Sequence[Source], template: Template | None) -> None:
        """
        Args:
            sources: the sources that tasks refer to by number.
            template: the model's markup; None examines without tokenizing.
        """
        self.sources = tuple(sources)
        self.template = template

    def __call__(self, task: Task) -> Examined:
        """Examine one shard.

        Raises:
            ConfigError: if its file cannot be read.
        """
        source = self.sources[task.source]
        elements = readers.read(task.shard)
        conversations: list[Conversation] = []
        problems: list[Problem] = []
        reader = ConversationReader(source)
        for element in elements.records:
            if isinstance(element, Problem):
                problems.append(element)
                continue
            try:
                conversation = reader.read(element)
            except SampleError as error:
                problems.extend(error.problems)
                continue
            refusal = None if self.template is None else self.template.refusal(conversation)
            if refusal is None:
                conversations.append(conversation)
            else:
                problems.append(Problem(refusal[0], conversation.origin, refusal[1]))
        table = _Images(source, source.media_root(task.shard.path))
        numbers = [[table.number(ref) for ref in conversation.images] for conversation in conversations]
        encoded = self._encode(conversations)
        return Examined(
            task=task,
            count=elements.count,
            records=sum(element.origin.line > 0 for element in elements.records),
            samples=_columns(conversations, encoded, numbers),
            names=table.names,
            locations=table.locations,
            limits=table.limits,
            digests=b"".join(map(_digest, table.locations, table.names, table.limits)),
            problems=problems,
        )

    def _encode(self, conversations: Sequence[Conversation]) -> EncodedBatch:
        if self.template is not None:
            return self.template.encode_all(conversations)
        nothing, bounds = np.empty(0, np.int32), np.zeros(len(conversations) + 1, np.int32)
        zeros = np.zeros(len(conversations), np.int32)
        empty = EncodedBatch(nothing, bounds, nothing, bounds, np.empty(0, np.float32), nothing, bounds, zeros, zeros)
        rows = [coordinates(conversation) for conversation in conversations]
        return replace(empty, boxes=np.concatenate([NO_BOXES, *rows]), box_bounds=counted(rows))


class _Images:
    """The distinct images of a shard."""

    def __init__(self, source: Source, media_root: str) -> None:
        self._rules = identity.Rules.of(source)
        self._media_root = media_root
        self._numbers: dict[records.ImageRef, int] = {}
        self.names: list[str] = []
        self.locations: list[str] = []
        self.limits: list[tuple[int, ...]] = []

    def number(self, ref: records.ImageRef) -> int:
        known = self._numbers.get(ref)
        if known is not None:
            return known
        number = self._numbers[ref] = len(self.names)
        self.names.append(ref.source)
        self.limits.append(() if ref.limits is None else astuple(ref.limits))
        self.locations.append(identity.locate(ref, self._media_root, self._rules))
        return number


def _digest(location: str, name: str, limits: tuple[int, ...]) -> bytes:
    asked = f"\0{limits}" if limits else ""
    return hashlib.blake2b(f"{location}\0{name}{asked}".encode("utf-8", "surrogatepass"), digest_size=DIGEST).digest()


def _columns(
    conversations: Sequence[Conversation], encoded: EncodedBatch, numbers: Sequence[Sequence[int]]
) -> pa.RecordBatch:
    lengths = encoded.spans[1::2] - encoded.spans[::2]
    running = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    image_bounds = np.concatenate(([0], np.cumsum([len(item) for item in numbers]))).astype(np.int32)
    images = np.fromiter(chain.from_iterable(numbers), np.int64, int(image_bounds[-1]))
    columns = [
        _lists(encoded.ids, encoded.id_bounds),
        _lists(encoded.spans, encoded.span_bounds),
        _lists(encoded.weights, encoded.span_bounds // 2),
        _lists(encoded.boxes.ravel(), _box_bounds(encoded)),
        _lists(encoded.slots, encoded.slot_bounds),
        _lists(images, image_bounds),
        pa.array(np.diff(running[encoded.span_bounds // 2])),
        pa.array([_learned_images(conversation) for conversation in conversations], pa.int32()),
        pa.array(encoded.thinking_dropped),
        pa.array(encoded.control_texts),
        *(_places(conversations, name) for name in ("line", "at")),
        _places(conversations, "item").cast(pa.int32()),
        pa.array([conversation.task for conversation in conversations], pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _box_bounds(encoded: EncodedBatch) -> NDArray[np.int32]:
    return np.zeros(len(encoded) + 1, np.int32) if encoded.box_bounds is None else encoded.box_bounds * 4


def _learned_images(conversation: Conversation) -> int:
    """Images whose tokens are targets."""
    if not conversation.with_images:
        return 0
    return sum(isinstance(part, int) for turn in conversation.turns if turn.supervised for part in turn.parts)


def _places(conversations: Sequence[Conversation], name: str) -> pa.Array:
    return pa.array(np.array([getattr(conversation.origin, name) for conversation in conversations], np.int64))


def _lists(values: NDArray[Any], bounds: NDArray[np.int32]) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(bounds), pa.array(values))
