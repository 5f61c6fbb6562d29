"""Which samples an inspection shows: some of every kind, or only one kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import numpy as np

from triptych.errors import Code, ConfigError
from triptych.inspect.gather import Gathered
from triptych.inspect.overview import Columns

TELLING = 500
"""Samples of a kind that are told apart from the others."""
CODES = get_args(Code)


def kinds(gathered: Gathered, found: Columns) -> dict[str, list[int]]:
    """Kind -> its samples, numbered over all splits, the most telling ones first."""
    order = np.argsort(-found.tokens, kind="stable")
    by_budget = np.argsort(found.budget, kind="stable")
    by_pixels = np.argsort(found.kept, kind="stable")
    result = {f"leak: {kind}": samples for kind, samples in _leaking(gathered).items()}
    result["longest"] = order[: max(1, len(order) // 100)].tolist()[:TELLING] if len(order) else []
    result["over budget"] = [number for number in by_budget.tolist() if found.budget[number] < 100][:TELLING]
    result["shrunk"] = [number for number in by_pixels.tolist() if found.kept[number] < 50][:TELLING]
    return {name: samples for name, samples in result.items() if samples}


def _leaking(gathered: Gathered) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for leaks in gathered.leaks:
        for pair in leaks.pairs:
            kind = "duplicate" if leaks.split == leaks.other else pair.kind
            both = (gathered.firsts[leaks.split] + pair.sample, gathered.firsts[leaks.other] + pair.other)
            found.setdefault(kind, []).extend(both)
    # What held-out samples have in common with others weighs more than what comes twice, and equal texts are usual.
    order = ("same-sample", "same-images", "shared-image", "near-image", "duplicate", "same-text")
    return {kind: list(dict.fromkeys(found[kind])) for kind in order if kind in found}


def only(text: str, gathered: Gathered, found: Columns) -> Callable[[int], bool]:
    """Whether a sample is of the kind that ``--only`` names: ``leak``, ``shrunk``, ``longest`` or ``task=T``.

    Raises:
        ConfigError: for any other name; codes of problems concern records that are no samples.
    """
    name, equals, value = text.partition("=")
    if name == "task" and equals:
        return lambda number: _task(gathered, number) == value
    groups = kinds(gathered, found)
    members = {
        "leak": {number for kind, samples in groups.items() if kind.startswith("leak") for number in samples},
        "shrunk": {*groups.get("shrunk", ()), *groups.get("over budget", ())},
        "longest": set(groups.get("longest", ())),
    }
    if text in members:
        return members[text].__contains__
    if text in CODES:
        return lambda _: False
    raise ConfigError(f"--only {text!r}: write leak, shrunk, longest, task=NAME, or a code: {', '.join(CODES)}")


def _task(gathered: Gathered, number: int) -> str | None:
    _, corpus, index = gathered.place(number)
    return corpus.task(index)
