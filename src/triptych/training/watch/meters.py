"""What the log says of a run's speed, and of the loss of each source: what adds up to the loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
import torch
from numpy.typing import NDArray

from triptych.forward.batch import Batch


@dataclass(slots=True)
class Meter:
    """What passed through a rank since the last log line."""

    tokens: int = 0
    images: int = 0
    known: int = 0
    """Images whose features were stored"""
    supervised: int = 0
    rows: int = 0
    flops: float = 0.0
    waited: float = 0.0
    """Seconds that training waited for rows."""
    started: float = 0.0
    """When the interval began; 0 before the first row is asked for."""

    def see(self, batch: Batch) -> None:
        """A row is about to be computed."""
        self.rows += 1
        self.tokens += batch.input_ids.shape[1]
        self.images += len(batch.image_grid_thw)
        self.known += batch.known_images
        self.supervised += len(batch.targets)

    def sums(self) -> list[float]:
        """What is summed over ranks, for ``meter_logs``."""
        return [self.tokens, self.images, self.known, self.supervised, self.rows, self.waited, self.flops]


def meter_logs(sums: Sequence[float], seconds: float, budget: int | None, world_size: int) -> dict[str, float]:
    """Throughput for the log.

    Args:
        sums: of ``Meter``, over all ranks.
        seconds: how long that took.
        budget: tokens of a row, where rows are filled to a budget.
        world_size: ranks.
    """
    tokens, images, known, supervised, rows, waited, _ = sums
    return {
        "tokens_per_second": tokens / seconds,
        "images_per_second": images / seconds,
        "supervised_tokens_per_second": supervised / seconds,
        "row_fill": tokens / max(1, rows * budget) if budget else 1.0,
        "data_wait": waited / world_size / seconds,
        "stored_images": known / max(1, images),
    }


class SourceLosses:
    """Adds up, on a rank, what each of G sources gave to the loss since the last report."""

    def __init__(self, names: Sequence[str], sources: NDArray[np.int64], device: torch.device) -> None:
        """
        Args:
            names: of the G sources.
            sources: (K,) source of each sample.
            device: of the rows.
        """
        self.names = list(names)
        self._sources = sources
        self._device = device
        self._steps = torch.zeros(2, len(names), device=device, dtype=torch.float64)
        self._step = torch.zeros_like(self._steps)

    def add(self, batch: Batch, losses: torch.Tensor, total: torch.Tensor | int) -> None:
        """What a row gives to the step that is going on.

        Args:
            batch: the row.
            losses: (S,) cross entropy of each of its targets.
            total: sum of the weights of the whole step, over all ranks.
        """
        if len(self.names) < 2 or not batch.samples:
            return
        of_samples = torch.from_numpy(self._sources[list(batch.samples)]).to(self._device, non_blocking=True)
        of_targets = of_samples[batch.sample_of_target()]
        weights = batch.weights.double() / total
        for row, values in enumerate((weights * losses, weights)):
            self._step[row].index_add_(0, of_targets, values)

    def forget_step(self) -> None:
        """The rows of the step that is going on are computed again."""
        self._step.zero_()

    def next_step(self) -> None:
        """The step that was going on is done."""
        self._steps += self._step
        self._step.zero_()

    def take(self) -> torch.Tensor:
        """(2 * G,) what each source gave to the loss, and its share of the weights, summed over steps since the last
        call on this rank."""
        self.next_step()
        found = self._steps.flatten()
        self._steps = torch.zeros_like(self._steps)
        return found

    def logs(self, sums: Sequence[float]) -> dict[str, float]:
        """``loss/NAME`` and ``share/NAME`` of each source that came, of ``take`` summed over all ranks.

        A source's loss is the weighted mean over its own targets. Times its share, summed over the sources, it is the
        loss.
        """
        count = len(self.names)
        given, weights = sums[:count], sums[count:]
        total = sum(weights)
        if count < 2 or not total:
            return {}
        present = [number for number in range(count) if weights[number]]
        losses = {f"loss/{self.names[number]}": given[number] / weights[number] for number in present}
        return losses | {f"share/{self.names[number]}": weights[number] / total for number in present}


def source_names(paths: Sequence[str | Sequence[str]]) -> list[str]:
    """A short name of each source: the last part of its first path, with its number where several are alike."""
    names = [PurePath(path if isinstance(path, str) else path[0]).name for path in paths]
    seen = Counter(names)
    return [f"{name}#{number}" if seen[name] > 1 else name for number, name in enumerate(names, 1)]
