"""What half and double ``max_pixels`` would cost, in rows, steps and memory: integers only, nothing is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from triptych.errors import TriptychError
from triptych.family.family import ModelFiles
from triptych.planning.cost import model_cost
from triptych.run.prepare import index_sources, make_encoder, plan_training
from triptych.run.reporter import Reporter
from triptych.run.settings import RunSettings

FACTORS = (0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class Cost:
    """A run under other limits of an image."""

    max_pixels: int
    tokens: int
    """Of all samples that are trained on, once"""
    rows: int
    steps: int
    gigabytes: float | None
    """Of the largest row's step; None where it cannot be said"""

    def row(self) -> tuple[str, ...]:
        """For a table."""
        memory = "-" if self.gigabytes is None else f"{self.gigabytes:,.1f} GB"
        return f"{self.max_pixels:,}", f"{self.tokens:,}", f"{self.rows:,}", f"{self.steps:,}", memory


HEADS = ("max_pixels", "tokens", "rows", "steps", "memory")


def what_if(settings: RunSettings, files: ModelFiles, out: Reporter) -> list[Cost]:
    """The run with half its ``max_pixels``, as it is, and with twice as many; those that cannot be are left out."""
    limit = make_encoder(files, settings).geometry.max_pixels
    found = []
    for factor in FACTORS:
        pixels = round(limit * factor)
        try:
            found.append(_cost(_changed(settings, pixels), files, pixels, out))
        except TriptychError as error:
            out.line(f"max_pixels of {pixels:,}: {error}")
    return found


def _changed(settings: RunSettings, pixels: int) -> RunSettings:
    content: dict[str, Any] = settings.model_dump()
    content["data"]["max_pixels"] = pixels
    return RunSettings.model_validate(content)


def _cost(settings: RunSettings, files: ModelFiles, pixels: int, out: Reporter) -> Cost:
    encoder = make_encoder(files, settings)
    corpus, _ = index_sources(f"max_pixels {pixels:,}", settings.sources("train"), encoder, out)
    cost = model_cost(settings.model.recipe, files.shapes)
    if settings.batch.auto:
        return Cost(pixels, int(corpus.lengths.tokens.sum()), 0, 0, None)
    plan = plan_training(settings, corpus, 1, cost)
    steps = -(-len(plan) // settings.train.rows_per_step)
    return Cost(pixels, int(corpus.lengths.tokens.sum()), len(plan), steps, _gigabytes(settings, files, corpus, plan))


def _gigabytes(settings: RunSettings, files: ModelFiles, corpus: Any, plan: Any) -> float | None:
    from triptych.estimate.devices import target_here
    from triptych.estimate.forecast import Forecast, RowSums

    try:
        forecast = Forecast(settings, files, target_here(settings.model))
        rows = RowSums(corpus, plan)
        return forecast.step(rows.size(forecast.worst(rows))).total / 1e9
    except TriptychError:
        return None  # `triptych plan` says why
