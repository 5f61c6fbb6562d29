"""Means of scores with the interval in which they would lie for other samples of the same kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 1000
LEVEL = 0.95
LARGEST_DRAW = 2_000_000
"""Numbers drawn at once."""


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of a group's scores, and its 95% interval by the bootstrap (Efron 1979)."""

    value: float
    low: float
    high: float
    count: int
    """Answers that could be scored"""


def mean(scores: Sequence[float | None], seed: int = 0) -> Mean | None:
    """The mean of what could be scored; None if nothing could.

    Args:
        scores: of a group; None where an answer could not be scored.
        seed: of the draws, so that the same scores give the same interval.
    """
    values = np.array([score for score in scores if score is not None], np.float64)
    if not len(values):
        return None
    random = np.random.default_rng(seed)
    block = max(1, LARGEST_DRAW // len(values))
    means: list[float] = []
    while len(means) < DRAWS:
        draws = random.integers(0, len(values), (min(block, DRAWS - len(means)), len(values)))
        means += values[draws].mean(axis=1).tolist()
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Mean(float(values.mean()), float(low), float(high), len(values))
