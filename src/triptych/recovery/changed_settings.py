"""Settings that differ from those of the checkpoint: each is applied and said, or refused by name; none is ignored."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from triptych.errors import ConfigError
from triptych.run import run_file
from triptych.run.settings import RunSettings

Fate = Literal["applied", "refused", "by content"]
"""What becomes of a changed setting. ``by content``: the samples decide, not the setting; see ``data_identity``."""

SHAPES_LOSS = "it decides what is learned"
SHAPES_ROWS = "it decides which samples share a step"
SHAPES_WEIGHTS = "the checkpoint's weights were made with it"
SHAPES_OPTIMIZER = "the checkpoint's optimizer was made with it"
SHAPES_SCHEDULE = "the learning rates of all steps follow from it"

FATES: dict[str, tuple[Fate, str]] = {
    "model.path": ("refused", SHAPES_WEIGHTS),
    "model.train": ("refused", SHAPES_WEIGHTS),
    "model.freeze": ("refused", SHAPES_WEIGHTS),
    "model.full": ("refused", SHAPES_WEIGHTS),
    "model.lora.rank": ("refused", SHAPES_WEIGHTS),
    "model.lora.alpha": ("refused", SHAPES_WEIGHTS),
    "model.lora.dropout": ("refused", SHAPES_WEIGHTS),
    "model.lora.targets": ("refused", SHAPES_WEIGHTS),
    "model.lora.rslora": ("refused", SHAPES_WEIGHTS),
    "model.lora.dora": ("refused", SHAPES_WEIGHTS),
    "model.lora.experts": ("refused", SHAPES_WEIGHTS),
    "model.adapter": ("refused", SHAPES_WEIGHTS),
    "model.precision": ("refused", SHAPES_WEIGHTS),
    "model.attention": ("applied", "equal within rounding"),
    "data.train": ("by content", ""),
    "data.train.path": ("by content", ""),
    "data.train.media_dir": ("by content", ""),
    "data.train.confine": ("by content", ""),
    "data.train.columns": ("by content", ""),
    "data.train.tags": ("by content", ""),
    "data.train.mark": ("by content", ""),
    "data.train.marks": ("by content", ""),
    "data.train.roles": ("by content", ""),
    "data.train.choice": ("by content", ""),
    "data.train.ignore": ("by content", ""),
    "data.train.weight": ("refused", SHAPES_ROWS),
    "data.train.min_pixels": ("refused", SHAPES_ROWS),
    "data.train.max_pixels": ("refused", SHAPES_ROWS),
    "data.train.loss_weight": ("refused", SHAPES_LOSS),
    "data.train.epochs": ("refused", SHAPES_ROWS),
    "data.train.max_samples": ("refused", SHAPES_ROWS),
    "data.train.first": ("refused", SHAPES_ROWS),
    "data.hold_out": ("refused", "it decides which samples are learned"),
    "data.system": ("refused", SHAPES_LOSS),
    "data.eval": ("applied", "evaluation losses before and after are of different samples"),
    "data.min_pixels": ("refused", SHAPES_ROWS),
    "data.max_pixels": ("refused", SHAPES_ROWS),
    "data.hold_out_by": ("refused", "it decides which samples are learned"),
    "data.resize": ("refused", SHAPES_ROWS),
    "data.sample_image_tokens": ("refused", SHAPES_ROWS),
    "data.max_tokens": ("refused", SHAPES_ROWS),
    "data.too_long": ("refused", SHAPES_ROWS),
    "data.supervise": ("refused", SHAPES_LOSS),
    "data.on_error": ("applied", ""),
    "data.allow_remote": ("applied", ""),
    "data.allow_private": ("applied", ""),
    "data.decode": ("refused", "it decides the pixels"),
    "data.workers": ("applied", ""),
    "data.prefetch_mb": ("applied", ""),
    "data.stall_seconds": ("applied", ""),
    "batch.samples": ("refused", SHAPES_ROWS),
    "batch.tokens": ("refused", SHAPES_ROWS),
    "batch.patches": ("refused", SHAPES_ROWS),
    "batch.auto": ("refused", SHAPES_ROWS),
    "batch.share": ("refused", SHAPES_ROWS),
    "batch.group_similar": ("refused", SHAPES_ROWS),
    "train.epochs": ("refused", SHAPES_SCHEDULE),
    "train.learning_rate": ("applied", "from the next step on"),
    "train.part_learning_rates": ("refused", SHAPES_OPTIMIZER),
    "train.rows_per_step": ("refused", SHAPES_ROWS),
    "train.average": ("refused", SHAPES_ROWS),
    "train.shuffle": ("refused", SHAPES_ROWS),
    "train.schedule": ("refused", SHAPES_SCHEDULE),
    "train.warmup": ("refused", SHAPES_SCHEDULE),
    "train.weight_decay": ("applied", "from the next step on"),
    "train.max_grad_norm": ("applied", "from the next step on"),
    "train.gradient_checkpointing": ("applied", ""),
    "train.compile": ("applied", "equal within rounding"),
    "train.logits_mb": ("applied", "equal within rounding"),
    "train.feature_cache": ("applied", ""),
    "train.feature_cache_gb": ("applied", ""),
    "train.max_steps": ("refused", SHAPES_SCHEDULE),
    "train.seed": ("refused", SHAPES_ROWS),
    "train.log_every": ("applied", ""),
    "train.save_every": ("applied", ""),
    "train.keep_checkpoints": ("applied", ""),
    "train.eval_every": ("applied", ""),
    "train.metric": ("applied", "the best so far was chosen by the other one"),
    "train.patience": ("applied", ""),
    "train.show.samples": ("applied", "answers before are of other samples"),
    "train.show.max_new_tokens": ("applied", ""),
    "train.show.to_trackers": ("applied", ""),
    "eval.max_new_tokens": ("applied", ""),
    "eval.batch_size": ("applied", ""),
    "eval.limit": ("applied", ""),
    "eval.scorers": ("applied", ""),
    "eval.by": ("applied", ""),
    "output": ("applied", ""),
}
"""Every setting of the run file, those of ``train.hf`` excepted; a test walks the schema."""

HF_APPLIED = frozenset(
    {
        "report_to", "run_name", "logging_first_step", "dataloader_pin_memory", "disable_tqdm", "log_level",
        "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "ddp_timeout", "ddp_bucket_cap_mb",
        "torch_empty_cache_steps", "skip_memory_metrics", "project", "trackio_space_id", "push_to_hub", "hub_model_id",
    }
)  # fmt: skip
"""Arguments of ``TrainingArguments`` that shape neither weights nor optimizer; any other one is refused."""


@dataclass(frozen=True, slots=True)
class Change:
    """One setting that is not what it was when the checkpoint was written."""

    name: str
    old: Any
    new: Any
    fate: Fate
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {_shown(self.old)} -> {_shown(self.new)}"


def changes(before: RunSettings, now: RunSettings) -> list[Change]:
    """Every setting that differs, in the order of the run file; paths are compared as absolute ones."""
    old, new = (flat(run_file.absolute_paths(settings.model_dump(mode="json"))) for settings in (before, now))
    names = list(dict.fromkeys([*old, *new]))
    return [Change(name, old.get(name), new.get(name), *fate(name)) for name in names if old.get(name) != new.get(name)]


def fate(name: str) -> tuple[Fate, str]:
    """What becomes of a changed setting, and why."""
    if name.startswith("train.hf."):
        applied = name.removeprefix("train.hf.") in HF_APPLIED
        return ("applied", "") if applied else ("refused", "it may shape weights or optimizer")
    return FATES.get(re.sub(r"^data\.train\.\d+", "data.train", name), ("refused", "it may shape weights or optimizer"))


def settle(before: RunSettings, now: RunSettings, checkpoint: str) -> list[Change]:
    """The changes that are applied; those of ``by content`` among them.

    Raises:
        ConfigError: naming each change that is refused, with its old and new value.
    """
    found = changes(before, now)
    refused = [change for change in found if change.fate == "refused"]
    if refused:
        lines = [f"  {change} ({change.reason})" for change in refused]
        raise ConfigError(
            f"these settings cannot change between {checkpoint} and --resume:\n"
            + "\n".join(lines)
            + "\nset them back, or start a new run in another output folder"
        )
    return found


def lines(applied: Sequence[Change]) -> list[str]:
    """What to say of changes that are applied."""
    reasons = (f" ({change.reason})" if change.reason else "" for change in applied)
    return [f"changed since the checkpoint: {change}{reason}" for change, reason in zip(applied, reasons, strict=True)]


def as_given(settings: RunSettings, overrides: Sequence[str]) -> list[str]:
    """Overrides to be kept with a checkpoint: paths in them mean the same from every folder."""
    content = run_file.absolute_paths(settings.model_dump(mode="json"))
    kept = []
    for key in dict.fromkeys(override.partition("=")[0] for override in overrides):
        value: Any = content
        for name in key.split("."):
            value = value[int(name)] if isinstance(value, list) else value[name]
        kept.append(f"{key}={json.dumps(value, ensure_ascii=False)}")
    return kept


def keep_overrides(now: RunSettings, given: Sequence[str], first: Sequence[str]) -> tuple[RunSettings, list[str]]:
    """The settings with those overrides of the first start that this start does not give itself, and these overrides.

    Raises:
        ConfigError: if they do not go together.
    """
    keys = [override.partition("=")[0] for override in given]
    keys.append("output")  # where the checkpoint was found is where the run goes on
    kept = [text for text in first if not any(_overlap(text.partition("=")[0], key) for key in keys)]
    if not kept:
        return now, []
    return run_file.from_mapping(now.model_dump(mode="json"), [*kept, *given]), kept


def flat(content: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their dotted names (``data.train.0.path``); other lists and mappings are values and stay whole."""
    result: dict[str, Any] = {}

    def walk(group: Mapping[str, Any], prefix: str) -> None:
        for key, value in group.items():
            name = f"{prefix}{key}"
            if isinstance(value, Mapping) and name in GROUPS:
                walk(value, f"{name}.")
            elif name == "data.train":
                for number, source in enumerate(value):
                    result.update({f"{name}.{number}.{field}": setting for field, setting in source.items()})
            else:
                result[name] = value

    walk(content, "")
    return result


GROUPS = frozenset({"model", "model.lora", "data", "batch", "train", "train.hf", "train.show", "eval"})
"""Settings that hold settings."""


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.12g}"  # a whole number without its zero
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)
