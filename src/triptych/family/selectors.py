"""Which part of a model, or which of its layers, a setting means: ``vision``, ``language[:20]``, ``language[-4:]``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from triptych.errors import ConfigError

Part = Literal["vision", "merger", "language"]
PARTS: tuple[Part, ...] = get_args(Part)

_FORM = re.compile(r"(?P<part>[a-z]+)(?:\[(?P<start>-?\d+)?:(?P<stop>-?\d+)?\])?")


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a model a parameter is.

    Layers count from 0. What runs before the layers (the embedding) has the number -1, what runs after them (the final
    norm, the head) has the number of layers; the merger has no layers, all of it is at 0.
    """

    part: Part
    layer: int


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive layers of one part, as numbers of a ``Place``: ``start`` is in it, ``stop`` is not."""

    text: str
    """As the user wrote it"""
    part: Part
    start: int
    stop: int

    def holds(self, place: Place) -> bool:
        return place.part == self.part and self.start <= place.layer < self.stop

    def overlaps(self, other: Span) -> bool:
        return self.part == other.part and max(self.start, other.start) < min(self.stop, other.stop)

    def within(self, other: Span) -> bool:
        return self.part == other.part and other.start <= self.start and self.stop <= other.stop


@dataclass(frozen=True, slots=True)
class Selector:
    """A part, or a slice of its layers.

    As in Python, an end that is left out reaches the part's own end: ``language[:20]`` holds the embedding,
    ``language[20:]`` the final norm and the head, ``language[4:8]`` four layers and nothing else.
    """

    text: str
    part: Part
    sliced: bool
    start: int | None
    stop: int | None

    @property
    def whole(self) -> bool:
        """Whether it means all of its part, however many layers that has."""
        return self.start is None and self.stop is None

    def span(self, counts: Mapping[Part, int]) -> Span:
        """The layers it means in a model of which every part has so many.

        Raises:
            ConfigError: if there is no such layer, or none between the two ends.
        """
        count = counts[self.part]
        start = -1 if self.start is None else self._number(self.start, count)
        stop = count + 1 if self.stop is None else self._number(self.stop, count)
        if start >= stop:
            raise ConfigError(f"{self.text} holds no layer; {self.part} has {count} layers, 0 to {count - 1}")
        return Span(self.text, self.part, start, stop)

    def _number(self, number: int, count: int) -> int:
        found = number + count if number < 0 else number
        if not 0 <= found <= count:
            raise ConfigError(f"{self.text}: no such layer; {self.part} has {count} layers, 0 to {count - 1}")
        return found


def parse_selector(text: str) -> Selector:
    """Read a selector.

    Raises:
        ValueError: in a user's words, if it is none.
    """
    found = _FORM.fullmatch(text.replace(" ", ""))
    part = next((part for part in PARTS if found and found["part"] == part), None)
    if found is None or part is None:
        raise ValueError(
            f"{text!r} is no part of a model; write {', '.join(PARTS)}, or a slice of layers such as 'language[:20]'"
        )
    sliced = "[" in text
    if sliced and part == "merger":
        raise ValueError(f"{text!r}: the merger has no layers to slice; write merger")
    start, stop = (None if found[end] is None else int(found[end]) for end in ("start", "stop"))
    return Selector(text, part, sliced, start, stop)


def spans(texts: Iterable[str], counts: Mapping[Part, int], setting: str) -> tuple[Span, ...]:
    """The layers that a setting's selectors mean.

    Raises:
        ConfigError: naming ``setting``, for a layer that is not there.
    """
    try:
        return tuple(parse_selector(text).span(counts) for text in texts)
    except (ValueError, ConfigError) as error:
        raise ConfigError(f"{setting}: {error}") from error


def check_nested(found: Iterable[Span], setting: str) -> None:
    """Selectors that choose a value may lie in one another, where the narrower decides; they may not cross.

    Raises:
        ConfigError: naming ``setting``, where two of them cross or are the same layers.
    """
    seen: list[Span] = []
    for span in found:
        for other in seen:
            if span.overlaps(other) and span.within(other) == other.within(span):
                raise ConfigError(
                    f"{setting}: {other.text} and {span.text} overlap and neither is inside the other; which of them "
                    "decides is not clear"
                )
        seen.append(span)


def narrowest(found: Iterable[Span], place: Place) -> Span | None:
    """The span that decides for ``place``: of those that hold it the one of fewest layers."""
    holding = [span for span in found if span.holds(place)]
    return min(holding, key=lambda span: span.stop - span.start, default=None)
