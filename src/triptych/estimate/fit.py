"""The largest row that fits a device: what ``batch: auto`` and ``plan --fit`` choose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from triptych.corpus.corpus import Corpus
from triptych.errors import ConfigError
from triptych.estimate.forecast import Forecast
from triptych.forward.memory import RowSize
from triptych.run.settings import BatchSettings, RunSettings

STEP = 256
"""Rows are a multiple of so many tokens."""
ENOUGH = 32_768
"""Tokens of a row from which on a GPU gains nothing by longer ones; longer samples get longer rows."""
FALLBACK = 8_192
"""Tokens of a row where there is no memory to fit it to, on a CPU."""


@dataclass(frozen=True, slots=True)
class Longest:
    """What the samples of a run ask of a row."""

    size: RowSize
    """Of the longest sample in each of the three"""
    patches_per_token: float
    """The most of any sample; no packed row has more"""
    supervised_per_token: float
    """Of all samples together"""
    tokens: int
    """Of all samples together"""

    def row(self, tokens: int) -> RowSize:
        """A row of so many tokens at its worst."""
        patches, supervised = (int(tokens * share) for share in (self.patches_per_token, self.supervised_per_token))
        return RowSize(tokens, max(patches, self.size.patches), min(tokens, max(supervised, self.size.supervised)))


def longest(*corpora: Corpus) -> Longest:
    """What the samples of ``corpora`` ask of a row."""
    tokens, patches, supervised = (
        np.concatenate(columns)
        for columns in zip(*((c.lengths.tokens, c.lengths.patches, c.supervised) for c in corpora), strict=True)
    )
    size = RowSize(int(tokens.max()), int(patches.max()), int(supervised.max()))
    total = int(tokens.sum())
    shares = patches / np.maximum(tokens, 1)
    return Longest(size, float(shares.max()), float(supervised.sum()) / max(1, total), total)


def largest_row(forecast: Forecast, samples: Longest) -> int | None:
    """Tokens of the largest row that fits, a multiple of ``STEP``; None if the longest sample does not.

    No more than all samples of an epoch together, nor than ``ENOUGH`` unless a sample is longer.
    """
    least = -(-samples.size.tokens // STEP) * STEP
    most = max(least, min(ENOUGH, -(-samples.tokens // STEP) * STEP))
    room = forecast.target.usable
    if room is None:
        return max(least, min(most, FALLBACK))
    if forecast.step(samples.row(least)).total > room:
        return None
    while least < most:
        middle = (least + most + STEP) // 2 // STEP * STEP
        if forecast.step(samples.row(middle)).total <= room:
            least = middle
        else:
            most = middle - STEP
    return least


def with_rows_of(settings: RunSettings, tokens: int) -> RunSettings:
    """The run with packed rows of so many tokens."""
    now = settings.batch
    batch = BatchSettings(tokens=tokens, group_similar=now.group_similar, share=now.share)
    return settings.model_copy(update={"batch": batch})


def fitted(forecast: Forecast, *corpora: Corpus) -> RunSettings:
    """The run with the largest rows that fit its device.

    Args:
        forecast: of the run.
        corpora: its samples, those that it is evaluated on too.

    Raises:
        ConfigError: if the longest sample does not fit.
    """
    samples = longest(*corpora)
    tokens = largest_row(forecast, samples)
    if tokens is None:
        needed = forecast.step(samples.row(samples.size.tokens)).total
        raise ConfigError(
            f"batch: auto: the longest sample alone ({samples.size.tokens:,} tokens) needs {needed / 1e9:.1f} GB, and "
            f"{forecast.target.name} has {(forecast.target.usable or 0) / 1e9:.1f} GB for tensors; "
            "`triptych plan` shows what each setting would save"
        )
    return with_rows_of(forecast.settings, tokens)
