"""What the messages about records advise to write in the source, tried until more records are read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml

from triptych.errors import ConfigError, Problem, SampleError
from triptych.sources.records import Record, Source
from triptych.text.conversation import Conversation, parse

TRIED = 50
"""Records that a piece of advice is tried on."""
ROUNDS = 4
"""Pieces of advice that may be needed together: a table may need its columns, their marks and a rule for its roles."""
ADVISED = re.compile(r"`((?:mark|marks|roles|columns|tags|choice): [^`]+)`")
"""Settings of a source in a message. ``ignore`` is not among them: what is left out is for a person to decide."""
NEVER = ("marks: first", "roles: keep")
"""Said beside another piece of advice, for what only a person can tell"""


def advised(source: Source, records: Sequence[Record]) -> Source:
    """``source`` with the advised settings under which most records are read; itself if none helps."""
    tried = records[:TRIED]
    best, most = source, len(parsed(source, tried)[0])
    now = source
    for _ in range(ROUNDS):
        good, problems = parsed(now, tried)
        if len(good) > most:
            best, most = now, len(good)
        if not problems:
            break
        candidates = [(parsed(one, tried), one) for one in _candidates(now, problems)]
        if not candidates:
            break
        # The first of the best: a message gives the likeliest advice first.
        now = max(candidates, key=lambda candidate: (len(candidate[0][0]), -len(candidate[0][1])))[1]
    return best


def parsed(source: Source, records: Iterable[Record]) -> tuple[list[Conversation], list[Problem]]:
    """The records that are read as ``source`` says, and the problems of the others."""
    good: list[Conversation] = []
    problems: list[Problem] = []
    for record in records:
        try:
            good.append(parse(record, source))
        except SampleError as error:
            problems.extend(error.problems)
    return good, problems


def _candidates(source: Source, problems: Sequence[Problem]) -> list[Source]:
    """``source`` with one more advised setting each, those of the most frequent advice first."""
    advice = Counter(text for problem in problems for text in ADVISED.findall(problem.message) if text not in NEVER)
    found: list[Source] = []
    for text, _ in advice.most_common(TRIED):
        changed = _with(source, text)
        if changed is not None and changed != source and changed not in found:
            found.append(changed)
    return found


def _with(source: Source, text: str) -> Source | None:
    """``source`` with the setting ``text``, as YAML; None where it is none, for example a key that was cut short."""
    try:
        settings: dict[str, Any] = yaml.safe_load(text)
        for name in ("columns", "tags", "choice"):
            if name in settings:
                earlier: Mapping[str, Any] = getattr(source, name) or {}
                settings[name] = {**earlier, **settings[name]}
        return replace(source, **settings)
    except (yaml.YAMLError, ConfigError, TypeError):
        return None
