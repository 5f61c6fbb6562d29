"""Which method, limits and batch suit some data, a model and a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from triptych.corpus.corpus import Corpus
from triptych.corpus.examine import CheckReport
from triptych.errors import ConfigError
from triptych.estimate.devices import Target, find_target
from triptych.estimate.fit import STEP, largest_row, longest
from triptych.estimate.forecast import Forecast
from triptych.family.family import ModelFiles
from triptych.family.recipe import Train
from triptych.run.prepare import index_sources, make_encoder
from triptych.run.reporter import Reporter
from triptych.run.settings import RunSettings
from triptych.sources.records import Source

IMAGE_TOKENS = (1024, 512, 256)
"""Tokens that one image may cost, from the most."""
SAMPLES_PER_STEP = 16
"""What a step holds unless the data is tiny: the usual batch of fine-tuning on some thousand samples."""
COMFORTABLE = 4096
"""Tokens that a row should hold before anything else is saved on."""
ROUND = 1024
FROZEN = ["vision", "merger"]
RATES: dict[Train, float] = {"full": 1e-5, "lora": 1e-4, "qlora": 1e-4}
EPOCHS = ((1000, 3), (10_000, 2))
"""Samples below which -> epochs; beyond, one."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What is written into the run file, and why."""

    method: Train
    checkpointing: bool
    image_tokens: int
    max_pixels: int | None
    """None where the model's own limit is as low, or no image is as large"""
    max_tokens: int
    row_tokens: int
    rows_per_step: int
    epochs: int
    needed: int
    """Bytes of the largest row"""
    target: Target
    fits: bool
    samples: int
    longest: int
    """Tokens of the longest sample"""
    mean: float
    """Tokens of the mean sample"""

    @property
    def rate(self) -> float:
        return RATES[self.method]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user says beside data and model."""

    gpu: str | None = None
    method: Train | None = None


def choose(
    model: str, files: ModelFiles, source: Source, wishes: Wishes, out: Reporter
) -> tuple[Choices, Corpus, CheckReport]:
    """The largest images and rows that fit, by the gentlest means: each of the list is tried until one fits.

    Args:
        model: folder or hub name.
        files: of the model.
        source: the data.
        wishes: what the user says.
        out: where progress is shown.

    Raises:
        ConfigError: if no sample is good, or ``wishes`` name what does not exist.
    """
    indexed: dict[int, tuple[Corpus, CheckReport]] = {}
    last: tuple[Choices, Corpus, CheckReport] | None = None
    forecasts: dict[Train, Forecast] = {}
    target = find_target(wishes.gpu, draft(model, source, {}).model)
    for method, checkpointing, image_tokens in ladder(target, wishes.method):
        settings = draft(
            model,
            source,
            {"train": method, "freeze": [] if method == "full" else FROZEN},
            {"gradient_checkpointing": checkpointing},
            max_pixels=pixels(files, image_tokens),
        )
        if image_tokens not in indexed:
            indexed[image_tokens] = index_sources("data", [source], make_encoder(files, settings), out)
        corpus, report = indexed[image_tokens]
        if not report.ok:
            raise ConfigError("no sample is good:\n" + "\n".join(map(str, report.problems[:5])))
        forecast = forecasts.setdefault(method, Forecast(settings, files, target))
        forecast = forecast.changed(train={"gradient_checkpointing": checkpointing})
        found = _fitted(settings, forecast, corpus, image_tokens)
        last = found, corpus, report
        if found.fits and found.row_tokens >= min(COMFORTABLE, found.longest + int(corpus.lengths.tokens.mean())):
            return last
    assert last is not None
    return last


def ladder(target: Target, method: Train | None) -> Iterator[tuple[Train, bool, int]]:
    """(method, gradient checkpointing, tokens per image), from what is liked best to what needs least memory."""
    if target.memory is None:  # a CPU: small images, or a step takes minutes
        yield method or "lora", False, IMAGE_TOKENS[-1]
        return
    methods: list[Train] = ["lora", "qlora"] if method is None else [method]
    yield methods[0], False, IMAGE_TOKENS[0]
    for image_tokens in IMAGE_TOKENS:
        for name in methods:
            yield name, True, image_tokens


def pixels(files: ModelFiles, image_tokens: int) -> int | None:
    """Largest area of an image of so many tokens; None where the model allows no more anyway."""
    area = image_tokens * files.geometry.factor**2
    return None if area >= files.geometry.max_pixels else area


def draft(
    model: str,
    source: Source,
    model_settings: dict[str, Any],
    train: dict[str, Any] | None = None,
    *,
    max_pixels: int | None = None,
) -> RunSettings:
    """A run over ``source`` whose rows are not chosen yet."""
    path = source.path if isinstance(source.path, str) else list(source.path)
    return RunSettings.model_validate(
        {
            "model": {"path": model, **model_settings},
            "data": {"train": [{"path": path}], "max_pixels": max_pixels, "allow_remote": source.allow_remote},
            "batch": "auto",
            "train": train or {},
            "output": "run",
        }
    )


def _fitted(settings: RunSettings, forecast: Forecast, corpus: Corpus, image_tokens: int) -> Choices:
    samples = longest(corpus)
    row = largest_row(forecast, samples)
    fits = row is not None
    mean = float(corpus.lengths.tokens.mean())
    longest_tokens = samples.size.tokens
    row_tokens = row or -(-longest_tokens // STEP) * STEP
    # No more samples in a row than a step is to hold.
    enough = -(-max(longest_tokens, int(SAMPLES_PER_STEP * mean)) // STEP) * STEP
    row_tokens = min(row_tokens, max(enough, -(-longest_tokens // STEP) * STEP))
    wanted = min(SAMPLES_PER_STEP, max(1, len(corpus) // 8))
    per_row = max(1.0, row_tokens / mean)
    limit = settings.data.max_pixels
    return Choices(
        method=settings.model.train,
        checkpointing=settings.train.gradient_checkpointing,
        image_tokens=image_tokens,
        max_pixels=limit,
        max_tokens=min(row_tokens, max(ROUND, -(-longest_tokens // ROUND) * ROUND)),
        row_tokens=row_tokens,
        rows_per_step=max(1, round(wanted / per_row)),
        epochs=next((epochs for below, epochs in EPOCHS if len(corpus) < below), 1),
        needed=forecast.step(samples.row(row_tokens)).total,
        target=forecast.target,
        fits=fits,
        samples=len(corpus),
        longest=longest_tokens,
        mean=mean,
    )


def workers() -> int:
    """Processes that decode images: as many as there are cores to spare, at most four."""
    return max(1, min(4, (os.cpu_count() or 2) - 1))
