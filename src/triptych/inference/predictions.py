"""Answers to held-out samples, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Prediction:
    """One held-out sample, its recorded answer and the model's."""

    origin: str
    task: str | None
    prompt: str
    images: list[str]
    reference: str
    prediction: str
    match: bool
    """Whether both are the same text, thinking and white space at the ends aside."""
    finished: bool
    """False if the model was cut off at ``eval.max_new_tokens``."""


@dataclass(frozen=True, slots=True)
class Score:
    """Exact match over some samples."""

    samples: int
    matches: int

    @property
    def exact_match(self) -> float:
        return self.matches / self.samples if self.samples else 0.0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A model's answers to the held-out samples, and where they are written."""

    scores: dict[str, Score]
    """Of each task, and of ``all``"""
    predictions: list[Prediction]
    """In corpus order"""
    folder: Path


def score(predictions: Sequence[Prediction]) -> dict[str, Score]:
    """Exact match per task, in alphabetical order, then over all samples."""
    groups: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        if prediction.task is not None:
            groups.setdefault(prediction.task, []).append(prediction)
    scores = {task: _score(groups[task]) for task in sorted(groups)}
    scores["all"] = _score(predictions)
    return scores


def _score(predictions: Sequence[Prediction]) -> Score:
    return Score(len(predictions), sum(prediction.match for prediction in predictions))
