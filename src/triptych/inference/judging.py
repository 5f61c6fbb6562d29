"""Which scorers judge an answer, and what they need of its record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from triptych.run.reporter import Reporter
from triptych.run.settings import EvalSettings
from triptych.scoring import scorers
from triptych.scoring.scorers import Scorer
from triptych.scoring.texts import Answered

ANY_TASK = "*"
LONGEST_VALUE = 60
"""Characters of a field's value that groups are named by."""


@dataclass(frozen=True, slots=True)
class Judge:
    """The scorers of each task, and the fields that scores are grouped by."""

    by_task: dict[str, list[Scorer]]
    """``*``: of the tasks that are not named"""
    fields: list[str]

    @property
    def reads_records(self) -> bool:
        """Whether records are to be read again."""
        return bool(self.fields) or any(item.reads_record for found in self.by_task.values() for item in found)

    def score(self, task: str | None, answer: Answered) -> dict[str, float | None]:
        """An answer's scores.

        Raises:
            ConfigError: if a user's scorer gives what is no score.
        """
        found = self.by_task.get(task or "", self.by_task.get(ANY_TASK, []))
        return {scorer.name: scorer.score(answer) for scorer in found}

    def grouped(self, record: dict[str, Any]) -> dict[str, str]:
        """The fields of a record that scores are grouped by; ``a.b`` is ``b`` inside ``a``."""
        found = {name: _at(record, name) for name in self.fields}
        return {name: str(value)[:LONGEST_VALUE] for name, value in found.items() if value is not None}


def make_judge(settings: EvalSettings) -> Judge:
    """The judge that a run asks for.

    Raises:
        ConfigError: for a scorer, its argument, package or file that is not there.
    """
    named = settings.scorers
    by_task = named if isinstance(named, dict) else {ANY_TASK: named}
    found = {task: scorers.find(names) for task, names in by_task.items()}
    found.setdefault(ANY_TASK, scorers.find([scorers.EXACT]))
    return Judge(found, list(dict.fromkeys(settings.by)))


def say_unscored(found: Iterable[tuple[str, dict[str, float | None]]], out: Reporter) -> None:
    """A line for each scorer that could not score some answers, since what was expected is not of its kind.

    Args:
        found: (origin, scores) of each answer.
        out: who is told.
    """
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for origin, scores in found:
        for name, value in scores.items():
            if value is None:
                counts[name] += 1
                first.setdefault(name, origin)
    for name, count in counts.items():
        out.line(
            f"{name}: {count:,} answers are not scored, since the expected one is not of that kind; the first is "
            f"{first[name]}; eval.scorers may name other scorers per task"
        )


def _at(record: dict[str, Any], name: str) -> Any:
    if name in record:
        return record[name]
    value: Any = record
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value
