"""Memory of a run's largest row, and what settings would save of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from triptych.corpus.corpus import Corpus
from triptych.errors import ConfigError
from triptych.estimate.devices import Target
from triptych.family.family import ModelFiles
from triptych.forward.attention import choose_attention
from triptych.forward.memory import MemoryModel, RowSize, StepMemory, StepOptions
from triptych.model.loading import empty_model
from triptych.model.qlora import quantised_weights
from triptych.model.trainable import set_up_training
from triptych.planning.plan import Plan
from triptych.run.settings import ModelSettings, RunSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

WORTH = 0.02
"""Share of the memory from which on a saving is worth a line."""


class RowSums:
    """What each of R rows holds."""

    def __init__(self, corpus: Corpus, planned: Plan) -> None:
        lengths = planned.lengths(corpus.lengths)
        self.tokens: NDArray[np.int64] = lengths.tokens
        """(R,) language tokens, those that samples share once"""
        self.patches: NDArray[np.int64] = lengths.patches
        """(R,) vision patches, the same"""
        self.supervised: NDArray[np.int64] = planned.sums(corpus.supervised)
        """(R,) supervised tokens"""

    def size(self, row: int) -> RowSize:
        return RowSize(int(self.tokens[row]), int(self.patches[row]), int(self.supervised[row]))


class Forecast:
    """Memory of the rows of a run on a device, from the model's shapes; no weight is read."""

    def __init__(self, settings: RunSettings, files: ModelFiles, target: Target) -> None:
        """
        Args:
            settings: of the run.
            files: of its model.
            target: the device.
        """
        self.settings = settings
        self.files = files
        self.target = target

    @cached_property
    def model(self) -> PreTrainedModel | PeftModel:
        """The model set up for training, on the meta device."""
        with torch.device("meta"):
            empty = empty_model(self.settings.model)
            return set_up_training(empty, self.files.family, self.settings.model, self.target.precision)

    @cached_property
    def memory(self) -> MemoryModel:
        """
        Raises:
            ConfigError: if ``model.attention`` names what cannot work on the device that is here.
        """
        settings, model = self.settings, self.model
        packed = set(quantised_weights(model, self.files.family)) if settings.model.train == "qlora" else set()
        attention = settings.model.attention
        if attention == "auto":  # a name that cannot work on this machine may still be planned with
            attention = choose_attention("auto", self.target.support, self.files.shapes, self.target.precision).name
        return MemoryModel(
            model,
            self.files.family,
            model.config,
            self.target.precision,
            StepOptions(
                checkpointing=settings.train.gradient_checkpointing,
                attention=attention,
                packed=packed,
                logits_limit=settings.train.logits_bytes,
            ),
        )

    def worst(self, rows: RowSums) -> int:
        """Number of the row that takes the most memory."""
        return self.memory.largest(rows.tokens, rows.patches, rows.supervised)

    def step(self, row: RowSize) -> StepMemory:
        return self.memory.step(row)

    def changed(self, **groups: dict[str, object]) -> Forecast:
        """The same run with other settings; the model is made again only where ``model`` changes.

        Args:
            groups: settings to change, by their group: ``train={"gradient_checkpointing": True}``.

        Raises:
            ConfigError: if they contradict each other.
        """
        content = self.settings.model_dump()
        for group, values in groups.items():
            content[group] |= values
        other = Forecast(RunSettings.model_validate(content), self.files, self.target)
        if "model" not in groups:
            other.__dict__["model"] = self.model
        return other


@dataclass(frozen=True, slots=True)
class Saving:
    """What one change would save of the largest row's memory."""

    change: str
    """As it is written in the run file"""
    bytes: int
    cost: str
    """What it costs, for people"""


def savings(forecast: Forecast, row: RowSize, longest: RowSize) -> list[Saving]:
    """What changes of the run file would save, the largest saving first.

    Args:
        forecast: of the run as it is.
        row: its largest row.
        longest: its longest sample, which a row cannot be shorter than.
    """
    total = forecast.step(row).total
    found = [
        Saving(change, total - other.step(size).total, cost)
        for change, other, size, cost in _alternatives(forecast, row, longest)
    ]
    return sorted((saving for saving in found if saving.bytes > WORTH * total), key=lambda saving: -saving.bytes)


def _alternatives(forecast: Forecast, row: RowSize, longest: RowSize) -> Iterator[tuple[str, Forecast, RowSize, str]]:
    model, train = forecast.settings.model, forecast.settings.train
    if not train.gradient_checkpointing:
        on: dict[str, object] = {"gradient_checkpointing": True}
        yield "train.gradient_checkpointing=true", forecast.changed(train=on), row, "a third more time"
    if model.train == "full":
        lora = _adapters(model)
        yield "model.train=lora", forecast.changed(model=lora), row, "adapters, not weights"
    if model.train != "qlora":
        changes = _adapters(model) | {"train": "qlora"}
        with suppress(ConfigError, ValueError):  # what is trained in full cannot be in 4 bits
            yield "model.train=qlora", forecast.changed(model=changes), row, "slower; a CUDA GPU"
    if forecast.settings.batch.tokens is not None and row.tokens > longest.tokens:
        half = RowSize(*(max(now // 2, least) for now, least in zip(_sizes(row), _sizes(longest), strict=True)))
        yield f"batch.tokens={half.tokens}", forecast, half, "smaller rows"
    if row.patches:
        merged = forecast.files.geometry.merge_size**2
        fewer = RowSize(row.tokens - row.patches // 2 // merged, row.patches // 2, row.supervised)
        yield "data.max_pixels, half of it", forecast, fewer, "smaller images"


def _adapters(model: ModelSettings) -> dict[str, object]:
    """Settings that train adapters beside what this run trains."""
    return {"train": "lora", "freeze": list(model.freeze) or ["vision", "merger"]}


def _sizes(row: RowSize) -> tuple[int, int, int]:
    return row.tokens, row.patches, row.supervised
