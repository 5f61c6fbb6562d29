"""Every setting of a run, with its meaning and its limits."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from triptych.errors import ConfigError
from triptych.family.recipe import (
    ANY_COUNTS,
    Recipe,
    Targets,
    Train,
    check_rates,
    has_experts,
    layer_counts,
    make_recipe,
)
from triptych.family.selectors import Part, parse_selector
from triptych.planning.mixture import Share
from triptych.planning.plan import BatchSpec
from triptych.run.hf_names import check_names
from triptych.sources.records import Marks, RoleRule, Source
from triptych.text.layout import Budget, TooLong

AttentionName = Literal["auto", "flash_attention_3", "flash_attention_2", "varlen", "sample_sdpa", "sdpa", "eager"]


def _selector(text: str) -> str:
    parse_selector(text)
    return text


PartOrLayers = Annotated[str, AfterValidator(_selector)]
"""``vision``, ``merger``, ``language``, or layers of one as a Python slice: ``language[:20]``."""


def _switch(value: Any) -> Any:
    """YAML 1.1 reads ``on`` and ``off`` as true and false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)]


def _batch(value: Any) -> Any:
    """``batch: auto`` is short for ``batch: {auto: true}``."""
    return {"auto": True} if value == "auto" else value


class Settings(BaseModel):
    """Base of all groups of settings: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class LoraSettings(Settings):
    """Low-rank adapters (Hu et al. 2021) through peft."""

    rank: PositiveInt = 16
    """Rank of the adapters."""
    alpha: PositiveFloat = 32.0
    """Scale: the adapters' output is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout in front of the adapters."""
    targets: Targets | dict[PartOrLayers, Targets] = "all-linear"
    """Linear layers to adapt, by the end of their name (``q_proj``), or per part ``{language: [q_proj]}``."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead (Kalajdzievski 2023), so that a higher rank does not learn more slowly."""
    dora: bool = False
    """Train the length of every weight row beside the adapters (DoRA, Liu et al. 2024)."""
    experts: bool = False
    """Also adapt the experts of a mixture-of-experts model; costs a copy of their weights while a layer is computed."""

    @model_validator(mode="after")
    def _targets_something(self) -> Self:
        if self.targets in ([], {}) and not self.experts:
            raise ValueError("`targets` names no layer; leave it out to adapt all linear layers")
        if self.experts and (self.dora or self.dropout):
            raise ValueError(
                "`experts` takes neither `dora` nor `dropout`: adapters of experts are added to their weights, and "
                "what goes through them is never seen"
            )
        return self


class ModelSettings(Settings):
    """Which model, and which of its weights learn."""

    path: str
    """Model folder, or a name on the Hugging Face hub."""
    train: Train = "full"
    """Train the weights (``full``), adapters beside them (``lora``), or those beside 4-bit weights (``qlora``)."""
    freeze: list[PartOrLayers] = []
    """What stays as it is: ``vision`` (the tower), ``merger`` (its projector), ``language``, or ``language[:20]``."""
    full: list[PartOrLayers] = []
    """What is trained in full beside the adapters of ``lora`` or ``qlora``, for example ``[merger]``."""
    lora: LoraSettings = LoraSettings()
    """Adapter settings; used with ``train: lora`` and ``qlora``."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the arithmetic; trained weights are kept in float32. ``auto``: bfloat16 on a GPU that has it."""
    attention: AttentionName = "auto"
    """What computes attention in training; ``auto``: the first of these that works here (docs/attention.md)."""

    @model_validator(mode="after")
    def _methods_agree(self) -> Self:
        for name in ("dora", "rslora", "experts"):
            if self.train == "full" and getattr(self.lora, name):
                raise ValueError(f"`lora.{name}` belongs to adapters; it goes with `train: lora` or `qlora`")
        if not self.has_slices():
            _in_pydantic(lambda: self.recipe(ANY_COUNTS))
        return self

    def recipe(self, counts: Mapping[Part, int]) -> Recipe:
        """What learns in a model of which every part has so many layers.

        Raises:
            ConfigError: if the settings contradict each other, or name a layer that is not there.
        """
        return make_recipe(self.train, self.freeze, self.full, self.lora.targets, counts)

    def has_slices(self) -> bool:
        """Whether what learns depends on the number of the model's layers."""
        targets = self.lora.targets if isinstance(self.lora.targets, dict) else {}
        return any(parse_selector(text).sliced for text in (*self.freeze, *self.full, *targets))


class ChoiceSettings(Settings):
    """Keys of a multiple-choice record, and how its options are written."""

    question: str = "question"
    """Key of the question's text."""
    options: str | list[str] = "options"
    """Key of the options (a list, or an object of letters), or one key for each: ``[A, B, C, D]``."""
    answer: str = "answer"
    """Key of the answer: a letter, an option's text, or its number from 0."""
    letters: str = "A. "
    """What stands before the first option: ``A. ``, ``(A) ``."""
    instruction: str = ""
    """A last line of the question, for example ``Answer with the letter.``"""


class SourceSettings(Settings):
    """Data files that share an image folder."""

    path: str | list[str]
    """A data file (.json, .jsonl, .parquet, .tar), a saved ``datasets`` folder, a URL, a glob, or a list of them."""
    media_dir: str | None = None
    """Folder, .tar file or URL that relative image paths start from; default: the folder of each data file."""
    confine: bool = False
    """Refuse images outside ``media_dir``."""
    columns: dict[str, str | list[str]] = {}
    """Names of the record's keys where they differ: ``{messages: dialog, images: photos}``; ``images`` may be a list
    of keys or a pattern: ``[left, right]``, ``image_{n}``."""
    tags: dict[str, str] = {}
    """Names inside a turn where they differ, for example ``{role: speaker, content: text, user: U, assistant: A}``."""
    mark: str = "<image>"
    """What stands for an image in the texts; ``{n}`` is its number among the record's images: ``<image_{n}>``."""
    marks: Marks = "inline"
    """Where images belong: at their marks (``inline``), all before the first question (``first``), or ``auto``: there
    where a record has images and no mark."""
    roles: RoleRule = "alternate"
    """Turns of one role in a row: an error (``alternate``), joined by a line break (``merge``), or as they are
    (``keep``)."""
    choice: ChoiceSettings | None = None
    """Read multiple choice: the question with its options becomes the user's turn, the letter the answer."""
    ignore: list[str] = []
    """Keys of records, turns and parts that hold something and are left out on purpose, for example ``[thumbnail]``."""

    weight: PositiveFloat | None = None
    """Part of an epoch relative to the other sources' weights; give it to all sources or to none."""
    epochs: PositiveFloat = 1.0
    """Passes over this source per epoch of the run; 0.5 takes every sample in every second one."""
    max_samples: PositiveInt | None = None
    """Use at most so many of its samples, chosen at random by the seed."""

    @model_validator(mode="after")
    def _known_names(self) -> Self:
        _in_pydantic(lambda: self.source(allow_remote=True))
        return self

    @model_validator(mode="after")
    def _weight_or_epochs(self) -> Self:
        if self.weight is not None and self.epochs != 1.0:
            raise ValueError("`weight` and `epochs` both say how much of it an epoch holds; give one of them")
        return self

    def share(self) -> Share:
        return Share(self.weight, self.epochs, self.max_samples)

    def source(self, *, allow_remote: bool) -> Source:
        path = self.path if isinstance(self.path, str) else tuple(self.path)
        return Source(
            path,
            self.media_dir,
            self.confine,
            self.columns,
            self.tags,
            allow_remote,
            mark=self.mark,
            marks=self.marks,
            roles=self.roles,
            choice=self.choice.model_dump() if self.choice else None,
            ignore=self.ignore,
        )


class DataSettings(Settings):
    """The samples, and what one of them may cost."""

    train: list[SourceSettings]
    """Sources to train on."""
    eval: list[SourceSettings] = []
    """Held-out sources: evaluation loss during training, ``triptych eval`` afterwards."""
    min_pixels: PositiveInt | None = None
    """Smallest area of a resized image, px; default: the model's own."""
    max_pixels: PositiveInt | None = None
    """Largest area of a resized image, px; default: the model's own."""
    sample_image_tokens: PositiveInt | None = None
    """Tokens that all images of one sample share; larger images shrink first."""
    max_tokens: PositiveInt | None = None
    """Tokens of one sample, images included."""
    too_long: TooLong = "shrink"
    """What happens over ``max_tokens``: shrink the images, drop the sample, report an error, or cut text too."""
    on_error: Literal["stop", "skip"] = "stop"
    """Defective samples end the run before a model is loaded, or are left out and listed in ``rejected.jsonl``."""
    allow_remote: bool = False
    """Read data files and images behind URLs (``s3://``, ``gs://``, ``https://``, ...) through fsspec."""
    decode: Literal["exact", "fast"] = "exact"
    """``fast``: JPEGs of at least twice the size they are resized to are scaled while they are decoded."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Processes that decode images ahead of training; 0 decodes in the training process."""
    prefetch_mb: PositiveInt = 256
    """Rows that the workers keep ready or have in hand, MB of 2^20 bytes, per rank; at least one row."""
    stall_seconds: PositiveFloat = 120.0
    """Seconds without progress after which a worker is named with its image, ended and replaced."""

    @model_validator(mode="after")
    def _limits_in_order(self) -> Self:
        if not self.train:
            raise ValueError("`train` names no source")
        if len({source.weight is None for source in self.train}) > 1:
            raise ValueError("some sources of `train` have a `weight` and some have none; give it to all or to none")
        if any(source.share() != Share() for source in self.eval):
            raise ValueError("`weight`, `epochs` and `max_samples` belong to sources of `train`; `eval` takes all")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError("`min_pixels` is larger than `max_pixels`")
        return self


class BatchSettings(Settings):
    """How a row is filled: exactly ``samples`` of them, or up to ``tokens`` and ``patches``; or ``batch: auto``."""

    samples: PositiveInt | None = None
    """Shuffled samples per row: the mathematics of a padded batch of as many, without the padding."""
    tokens: PositiveInt | None = None
    """Language tokens per row; samples are packed to fill it."""
    patches: PositiveInt | None = None
    """Vision patches per row, a second limit beside ``tokens``."""
    group_similar: bool = False
    """Let packed rows of similar cost share a step: ranks with one row each wait less, steps differ more in targets."""
    auto: bool = False
    """Choose ``tokens`` when training starts: the largest row that fits the device. ``batch: auto`` is short for it."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.auto:
            if self.samples is not None or self.tokens is not None or self.patches is not None:
                raise ValueError("`auto` chooses the size of rows; leave `samples`, `tokens` and `patches` out")
            return self
        if (self.samples is None) == (self.tokens is None):
            raise ValueError("give either `samples` or `tokens` (with or without `patches`), or `batch: auto`")
        if self.patches is not None and self.tokens is None:
            raise ValueError("`patches` goes with `tokens`")
        if self.group_similar and self.tokens is None:
            raise ValueError("`group_similar` goes with `tokens`; rows of `samples` are evened out within their step")
        return self

    def spec(self) -> BatchSpec:
        """
        Raises:
            ConfigError: under ``auto``, before the size of rows is chosen.
        """
        if self.auto:
            raise ConfigError("batch: auto is not chosen yet; `triptych plan --fit` says what it comes to")
        return BatchSpec(self.samples, self.tokens, self.patches, self.group_similar)


class TrainSettings(Settings):
    """The optimisation."""

    epochs: PositiveInt = 1
    """Passes over the samples."""
    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate."""
    part_learning_rates: dict[PartOrLayers, PositiveFloat] = {}
    """Peak learning rate of parts or layers, for example ``{vision: 2.0e-6}``; the narrower one decides."""
    rows_per_step: PositiveInt = 1
    """Rows per optimizer step, over all ranks; more than one per rank are accumulated."""
    schedule: str = "cosine"
    """Learning-rate schedule, by its name in transformers (``cosine``, ``linear``, ``constant_with_warmup``, ...)."""
    warmup: Annotated[float, Field(ge=0)] = 0.03
    """Share of the steps that warm up, if below 1; else their number."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's decay; biases and norms are exempt."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Gradient norm above which gradients are scaled down; 0 for never."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Compile the language layers with torch.compile: a slow first step, quicker ones after it."""
    logits_mb: PositiveInt | Literal["auto"] = "auto"
    """Size of the largest logits tensor, MB of 2^20 bytes; ``auto``: 32 on a CPU, 512 on a GPU."""
    feature_cache: Switch = "auto"
    """Keep what a frozen tower and merger make of each image on disk; ``auto``: where images are shown repeatedly."""
    feature_cache_gb: PositiveFloat = 50.0
    """Size that the features of all runs together may reach on disk, GB."""
    seed: int = 42
    """Seed of shuffling, adapters and dropout."""
    log_every: PositiveInt = 10
    """Optimizer steps between log lines."""
    save_every: PositiveInt | Literal["epoch"] = "epoch"
    """Optimizer steps between checkpoints."""
    keep_checkpoints: PositiveInt | None = 2
    """Checkpoints kept; None for all."""
    eval_every: PositiveInt | Literal["epoch"] = "epoch"
    """Optimizer steps between evaluation losses, where there is eval data."""
    hf: dict[str, Any] = {}
    """More for transformers' ``TrainingArguments``, by its name there; what would have no effect is refused."""

    @property
    def logits_bytes(self) -> int | None:
        """Bytes of the largest logits tensor; None for what suits the device."""
        return None if self.logits_mb == "auto" else self.logits_mb * 2**20


class EvalSettings(Settings):
    """Answering held-out samples."""

    max_new_tokens: PositiveInt = 256
    """Longest answer, tokens."""
    batch_size: PositiveInt = 16
    """Samples answered together."""
    limit: PositiveInt | None = None
    """Evaluate only the first so many samples."""


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
        _in_pydantic(lambda: check_names(train.hf, train.save_every, train.eval_every if self.data.eval else None))
        return self

    @model_validator(mode="after")
    def _rates_are_used(self) -> Self:
        rates = self.train.part_learning_rates
        if not self.model.has_slices() and not any(parse_selector(text).sliced for text in rates):
            _in_pydantic(lambda: check_rates(self.model.recipe(ANY_COUNTS), rates, ANY_COUNTS))
        return self

    def check_model(self, config: Mapping[str, Any]) -> None:
        """Settle what learns against ``config.json``, before any weight is read.

        Raises:
            ConfigError: for layers or experts that the model does not have, or rates of layers that do not learn.
        """
        if self.model.lora.experts and not has_experts(config):
            raise ConfigError(f"model.lora.experts: {self.model.path} is dense and has no experts; leave it out")
        counts = layer_counts(config)
        if counts is not None:
            check_rates(self.model.recipe(counts), self.train.part_learning_rates, counts)

    def budget(self, merge_size: int) -> Budget:
        """Limits of one sample; a sample must also fit in a row."""
        rows = [limit for limit in (self.data.max_tokens, self.batch.tokens) if limit is not None]
        images = [limit for limit in (self.data.sample_image_tokens,) if limit is not None]
        if self.batch.patches is not None:
            images.append(self.batch.patches // merge_size**2)
        return Budget(min(rows, default=None), min(images, default=None), self.data.too_long)

    def sources(self, split: Literal["train", "eval"]) -> list[Source]:
        sources: list[SourceSettings] = getattr(self.data, split)
        return [source.source(allow_remote=self.data.allow_remote) for source in sources]


def _in_pydantic(check: Callable[[], object]) -> None:
    """Run a check whose refusal pydantic reports with the setting's place."""
    try:
        check()
    except ConfigError as error:
        raise ValueError(str(error)) from error


def json_schema() -> str:
    """JSON Schema of the run file, for editors."""
    schema = RunSettings.model_json_schema()
    batch = schema["properties"]["batch"]
    batch["anyOf"] = [{"$ref": batch.pop("$ref")}, {"const": "auto"}]
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
