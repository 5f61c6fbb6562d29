"""Every setting of a run, with its meaning and its limits."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, model_validator

from triptych.errors import ConfigError
from triptych.family.recipe import ANY_COUNTS, check_rates
from triptych.family.selectors import parse_selector
from triptych.family.shapes import ModelShapes
from triptych.planning.plan import BatchSpec
from triptych.run.hf_names import check_names
from triptych.run.settings.base import Settings, in_pydantic
from triptych.run.settings.data import DataSettings, SourceSettings
from triptych.run.settings.model import ModelSettings
from triptych.run.settings.training import BatchSettings, EvalSettings, TrainSettings
from triptych.sources.records import Source
from triptych.text.layout import Budget


def _batch(value: Any) -> Any:
    """``batch: auto`` is short for ``batch: {auto: true}``."""
    return {"auto": True} if value == "auto" else value


class RunSettings(Settings):
    """One training run."""

    model: ModelSettings
    """Which model, and which of its weights learn."""
    data: DataSettings
    """The samples, and what one of them may cost."""
    batch: Annotated[BatchSettings, BeforeValidator(_batch)]
    """How rows are filled; ``auto`` for the largest row that fits the device."""
    train: TrainSettings = TrainSettings()
    """The optimisation."""
    eval: EvalSettings = EvalSettings()
    """Answering held-out samples."""
    output: str
    """Folder of everything the run writes."""

    @model_validator(mode="after")
    def _hf_has_effect(self) -> Self:
        train = self.train
        hf = train.hf | ({"load_best_model_at_end": True} if train.keeps_best else {})
        if train.keeps_best and (not self.data.evaluates or train.eval_every is None):
            raise ValueError("`train.metric` and `train.patience` need evaluations: data.eval, and train.eval_every")
        in_pydantic(lambda: check_names(hf, train.save_every, train.eval_every if self.data.evaluates else None))
        return self

    @model_validator(mode="after")
    def _order_is_kept(self) -> Self:
        if self.batch.group_similar and not self.train.shuffle:
            raise ValueError("`batch.group_similar` orders rows by cost, `train.shuffle: false` keeps them in order")
        return self

    @model_validator(mode="after")
    def _rates_are_used(self) -> Self:
        rates = self.train.part_learning_rates
        if not self.model.has_slices() and not any(parse_selector(text).sliced for text in rates):
            in_pydantic(lambda: check_rates(self.model.recipe(ANY_COUNTS), rates, ANY_COUNTS))
        return self

    def check_model(self, shapes: ModelShapes) -> None:
        """Settle what learns against the model's shapes, before any weight is read.

        Raises:
            ConfigError: for layers or experts that the model does not have, or rates of layers that do not learn.
        """
        if self.model.lora.experts and not shapes.language.experts:
            raise ConfigError(f"model.lora.experts: {self.model.path} is dense and has no experts; leave it out")
        check_rates(self.model.recipe(shapes.layers), self.train.part_learning_rates, shapes.layers)

    def row_spec(self) -> BatchSpec:
        """How rows of training are filled.

        Raises:
            ConfigError: under ``batch: auto``, before the size of rows is chosen.
        """
        train = self.train
        return replace(self.batch.spec(), ordered=not train.shuffle, whole_steps=train.average == "rows")

    def budget(self, merge_size: int) -> Budget:
        """Limits of one sample; a sample must also fit in a row."""
        rows = [limit for limit in (self.data.max_tokens, self.batch.tokens) if limit is not None]
        images = [limit for limit in (self.data.sample_image_tokens,) if limit is not None]
        if self.batch.patches is not None:
            images.append(self.batch.patches // merge_size**2)
        return Budget(min(rows, default=None), min(images, default=None), self.data.too_long)

    def sources(self, split: Literal["train", "eval"]) -> list[Source]:
        """The sources that the run names for a split."""
        sources: list[SourceSettings] = getattr(self.data, split)
        return [source.source(self.data) for source in sources]

    def indexed(self, split: Literal["train", "eval"]) -> list[Source]:
        """The sources whose samples a split is taken from: under ``data.hold_out``, both are from those of train."""
        return self.sources("train" if self.data.hold_out is not None else split)


LISTED: dict[str, Any] = {
    "info": {"type": "string", "description": "Instead of `path`: a list of data sets, such as dataset_info.json."},
    "name": {
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
        "description": "Data sets of `info`; each becomes a source.",
    },
}
"""What names data sets of a list; ``sources/lists`` puts their sources in its place before settings are read."""


def json_schema() -> str:
    """JSON Schema of the run file, for editors."""
    schema = RunSettings.model_json_schema()
    batch = schema["properties"]["batch"]
    batch["anyOf"] = [{"$ref": batch.pop("$ref")}, {"const": "auto"}]
    source = schema["$defs"]["SourceSettings"]
    source["properties"] |= LISTED
    source["required"].remove("path")
    source["anyOf"] = [{"required": ["path"]}, {"required": ["info"]}]
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
