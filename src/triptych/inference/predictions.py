"""Answers to held-out samples, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from triptych.scoring.intervals import Mean, mean
from triptych.scoring.scorers import is_right


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
    scores: dict[str, float | None] = field(default_factory=dict)
    """Of each scorer of its task, from 0 to 1, the first one first; None where it could not score."""
    fields: dict[str, str] = field(default_factory=dict)
    """Of its record, those of ``eval.by``"""

    @property
    def right(self) -> bool:
        """Whether the first scorer calls it right; without one, whether the texts are the same."""
        return is_right(next(iter(self.scores.values()))) if self.scores else self.match


@dataclass(frozen=True, slots=True)
class Score:
    """The scores of some samples."""

    samples: int
    matches: int
    means: dict[str, Mean] = field(default_factory=dict)
    """Of each scorer, with its 95% interval"""

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
    by: dict[str, dict[str, Score]] = field(default_factory=dict)
    """Of each value of each field of ``eval.by``"""


def score(predictions: Sequence[Prediction]) -> dict[str, Score]:
    """Scores per task, in alphabetical order, then over all samples."""
    scores = _grouped([(item.task, item) for item in predictions])
    scores["all"] = _score(predictions)
    return scores


def score_by(predictions: Sequence[Prediction], name: str) -> dict[str, Score]:
    """Scores per value of a field of the records, in alphabetical order."""
    return _grouped([(item.fields.get(name), item) for item in predictions])


def _grouped(named: Sequence[tuple[str | None, Prediction]]) -> dict[str, Score]:
    groups: dict[str, list[Prediction]] = {}
    for name, prediction in named:
        if name is not None:
            groups.setdefault(name, []).append(prediction)
    return {name: _score(groups[name]) for name in sorted(groups)}


def _score(predictions: Sequence[Prediction]) -> Score:
    names = dict.fromkeys(name for prediction in predictions for name in prediction.scores)
    found = {name: mean([item.scores[name] for item in predictions if name in item.scores]) for name in names}
    means = {name: value for name, value in found.items() if value is not None}
    return Score(len(predictions), sum(prediction.match for prediction in predictions), means)
