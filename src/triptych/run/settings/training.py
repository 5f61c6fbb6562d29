"""Settings of rows, of the optimisation, and of evaluation."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from triptych.errors import ConfigError
from triptych.planning.plan import BatchSpec
from triptych.run.settings.base import PartOrLayers, Settings, Switch, in_pydantic
from triptych.scoring.scorers import EXACT, check_names

EVAL_LOSS = "eval_loss"
"""The metric that needs no generated answers; lower is better, where higher is for scorers."""


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
    share: Switch = "off"
    """Compute once what samples share at their start, such as one set of images; ``auto``: where it saves a tenth."""
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


class ShowSettings(Settings):
    """Answers that a run shows in its report while it trains."""

    samples: Annotated[int, Field(ge=0)] = 8
    """Samples answered before training, at each evaluation and at the end; 0 shows none."""
    max_new_tokens: PositiveInt = 64
    """Longest answer that is shown, tokens."""
    to_trackers: Literal["nothing", "answers", "images"] = "nothing"
    """What trackers of ``report_to`` are sent of them: nothing, questions and answers as text, or small copies of the
    images, too. TensorBoard's files in ``output``, like the report, hold both whatever this says."""


class TrainSettings(Settings):
    """The optimisation."""

    epochs: PositiveFloat | None = 1
    """Passes over the samples; 2.5 ends in the middle of the third. None for as many as ``max_steps`` needs."""
    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate."""
    part_learning_rates: dict[PartOrLayers, PositiveFloat] = {}
    """Peak learning rate of parts or layers, for example ``{vision: 2.0e-6}``; the narrower one decides."""
    rows_per_step: PositiveInt = 1
    """Rows per optimizer step, over all ranks; more than one per rank are accumulated."""
    average: Literal["tokens", "rows"] = "tokens"
    """What weighs the same in a step's loss: every target (``tokens``), or every row, whatever it holds (``rows``, as
    in tools that average batches; then a step never spans the end of an epoch)."""
    shuffle: bool = True
    """``false``: samples come in the order of the data, in every epoch."""
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
    max_steps: PositiveInt | None = None
    """Optimizer steps after which the run and its schedule end, if ``epochs`` do not end it before."""
    log_every: PositiveInt = 10
    """Optimizer steps between log lines."""
    save_every: PositiveInt | Literal["epoch"] | None = "epoch"
    """Optimizer steps between checkpoints; None for none but after a signal."""
    keep_checkpoints: PositiveInt | None = 2
    """Checkpoints kept; None for all."""
    eval_every: PositiveInt | Literal["epoch"] | None = "epoch"
    """Optimizer steps between evaluation losses, where there is eval data; None for no evaluation in training."""
    metric: str = EVAL_LOSS
    """What the best model is best by: ``eval_loss``, or a scorer of generated answers such as ``exact_match``."""
    patience: PositiveInt | None = None
    """Evaluations without a better ``metric`` after which training ends; the best model is kept."""
    show: ShowSettings = ShowSettings()
    """Answers over the steps, in ``report.html``."""
    hf: dict[str, Any] = {}
    """More for transformers' ``TrainingArguments``, by its name there; what would have no effect is refused."""

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.epochs is None and self.max_steps is None:
            raise ValueError("a run ends after `epochs` or `max_steps`; give one of them")
        return self

    @model_validator(mode="after")
    def _known_metric(self) -> Self:
        if self.metric != EVAL_LOSS:
            in_pydantic(lambda: check_names([self.metric]))
        return self

    @property
    def keeps_best(self) -> bool:
        """Whether the best model by ``metric`` is what remains at the end."""
        return self.metric != EVAL_LOSS or self.patience is not None

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
    scorers: list[str] | dict[str, list[str]] = [EXACT]
    """How answers are scored, or per task ``{count: [number], "*": [exact_match]}``; see docs/evaluation.md."""
    by: list[str] = []
    """Fields of the records that scores are also grouped by, for example ``[source, meta.language]``."""

    @model_validator(mode="after")
    def _known_scorers(self) -> Self:
        groups = self.scorers.values() if isinstance(self.scorers, dict) else [self.scorers]
        if not all(groups):
            raise ValueError("`scorers` names none; leave it out for exact_match")
        in_pydantic(lambda: check_names([name for names in groups for name in names]))
        return self
