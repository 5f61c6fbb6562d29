"""How much of each source an epoch holds, and which of its samples: deterministic, with exact counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Share:
    """What one source gives to an epoch of the run."""

    weight: float | None = None
    """Its part of the epoch relative to the other sources' weights; None for all of its samples."""
    epochs: float = 1.0
    """Passes over its samples per epoch of the run; a fraction spreads a pass over several."""
    max_samples: int | None = None
    """At most so many of its samples are ever used, chosen at random once."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """The sources of a corpus, which stand in it one after the other, and what each gives."""

    sizes: tuple[int, ...]
    """Good samples of each source."""
    shares: tuple[Share, ...]

    @property
    def plain(self) -> bool:
        """Whether an epoch is every sample once."""
        return all(share == Share() for share in self.shares)

    def pools(self) -> tuple[int, ...]:
        """Samples of each source that are used at all."""
        return tuple(
            size if share.max_samples is None else min(size, share.max_samples)
            for size, share in zip(self.sizes, self.shares, strict=True)
        )

    def counts(self) -> tuple[int, ...]:
        """Samples that each source gives to an epoch.

        With weights, an epoch has as many samples as the sources hold together, dealt out by largest remainder; a
        source that is empty gives its part to the others.
        """
        pools = self.pools()
        weights = [share.weight if pool else 0.0 for share, pool in zip(self.shares, pools, strict=True)]
        if all(share.weight is None for share in self.shares):
            return tuple(round(pool * share.epochs) for pool, share in zip(pools, self.shares, strict=True))
        exact = np.array([weight or 0.0 for weight in weights], np.float64)
        if not exact.sum():
            return (0,) * len(pools)
        exact *= sum(pools) / exact.sum()
        counts = np.floor(exact).astype(np.int64)
        most_cut_off = np.argsort(counts - exact, kind="stable")
        counts[most_cut_off[: sum(pools) - int(counts.sum())]] += 1
        return tuple(counts.tolist())

    def draw(self, epoch: int, seed: int, *, shuffle: bool = True) -> NDArray[np.int64]:
        """Sample indices of one epoch, source by source.

        A source is a stream of passes, each over all its samples in a new order (without ``shuffle``, in theirs), and
        every epoch goes on where the one before stopped: over a run, all its samples come equally often, give or take
        one.
        """
        starts = np.cumsum([0, *self.sizes])
        drawn = [
            start + _stream((size, pool), epoch * count, count, (seed, number), shuffle=shuffle)
            for number, (start, size, pool, count) in enumerate(
                zip(starts[:-1], self.sizes, self.pools(), self.counts(), strict=True)
            )
        ]
        return np.concatenate(drawn) if drawn else np.empty(0, np.int64)


def _stream(sizes: tuple[int, int], begin: int, count: int, seed: Sequence[int], *, shuffle: bool) -> NDArray[np.int64]:
    """``count`` indices from place ``begin`` of an endless row of passes; ``sizes``: over how many of how many."""
    size, pool = sizes
    if not count:
        return np.empty(0, np.int64)
    chosen = np.sort(np.random.default_rng((*seed, 0)).permutation(size)[:pool])
    first, last = begin // pool, (begin + count - 1) // pool
    passes = [
        chosen[np.random.default_rng((*seed, 1, number)).permutation(pool)] if shuffle else chosen
        for number in range(first, last + 1)
    ]
    return np.concatenate(passes)[begin - first * pool :][:count]
