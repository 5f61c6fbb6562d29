"""What a step's loss says of a run: one that is not finite ends it, one that jumps is said."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from triptych.errors import TriptychError
from triptych.recovery import checkpoints

SHOWN = 8
"""Samples that a line names."""


class DivergedError(TriptychError):
    """A loss or gradient norm that is not finite."""


def check_finite(
    output: Path, step: int, losses: Sequence[float], norm: float, rate: float, samples: Sequence[Sequence[str]]
) -> None:
    """Look at a step before it changes a weight.

    Args:
        output: of the run.
        step: number of the step, from 1.
        losses: of its rows.
        norm: of its gradient.
        rate: learning rate.
        samples: origins in each of its rows.

    Raises:
        DivergedError: if a number is not finite, with the samples of the rows that it comes from.
    """
    if math.isfinite(norm) and all(map(math.isfinite, losses)):
        return
    bad = [number for number, loss in enumerate(losses) if not math.isfinite(loss)]
    origins = [origin for number in bad or range(len(losses)) for origin in samples[number]]
    raise DivergedError(
        f"step {step}: the loss is {sum(losses):g} and the gradient norm {norm:g}, at learning rate {rate:g}; the run "
        f"ends before this step changes a weight\nin its row{'s' * (len(bad or losses) > 1)}: {named(origins)}\n"
        f"look at these samples, or lower train.learning_rate; {checkpoints.how_to_go_on(output)}"
    )


class SpikeWatch:
    """Notices a loss that is far above those of the last steps."""

    KNOWN = 32
    """Steps that are looked back at"""
    LEAST = 8
    """Steps before anything is said"""
    SPREADS = 8.0
    """Above the median, in median distances from it"""
    RISE = 0.1
    """Above the median at least: where a loss is nearly 0, twice of it says nothing"""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=self.KNOWN)
        self._quiet = 0

    def look(self, loss: float) -> float | None:
        """The median of the last steps if ``loss`` is far above it; nothing is said twice within a few steps."""
        middle = median(self._last) if len(self._last) >= self.LEAST else None
        spread = 0.0 if middle is None else median(abs(value - middle) for value in self._last)
        self._last.append(loss)
        self._quiet -= 1
        if middle is None or self._quiet > 0 or loss < self._limit(middle, spread):
            return None
        self._quiet = self.LEAST
        return middle

    def _limit(self, middle: float, spread: float) -> float:
        return max(2 * middle, middle + self.SPREADS * spread, middle + self.RISE)


def named(origins: Sequence[str], most: int = SHOWN) -> str:
    """Samples in a sentence, not more than ``most``."""
    if not origins:
        return "no sample"
    more = f" and {len(origins) - most:,} more" if len(origins) > most else ""
    return ", ".join(origins[:most]) + more
