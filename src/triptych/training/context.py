"""What is settled about a run before any weight is read: one object that the set-up of training reads from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import TrainingArguments

from triptych.family.family import Family
from triptych.forward.isolation import Isolation, choose_isolation
from triptych.model.loading import choose_precision
from triptych.planning.cost import model_cost
from triptych.planning.plan import Plan, sequential_plan
from triptych.recovery.resume import Start
from triptych.rows.builder import Share
from triptych.run.environment import keep_freed_memory
from triptych.run.prepare import Prepared, Split
from triptych.run.settings import RunSettings
from triptych.run.sharing import decide_sharing
from triptych.training.hf_arguments import training_arguments


@dataclass(frozen=True, slots=True)
class TrainingContext:
    """A run's settings, samples and plans, and what they come to on this machine."""

    settings: RunSettings
    prepared: Prepared
    start: Start
    """Where training begins: at its first step, or at a checkpoint"""
    args: TrainingArguments
    """Of transformers; they know the device and the ranks"""
    precision: torch.dtype
    """Of the arithmetic"""
    isolation: Isolation
    plans: dict[Split, Plan]
    shared: str = ""
    """What to say of ``batch.share``"""

    @property
    def share(self) -> Share:
        """What the samples of a row share."""
        if self.start.samples.sharing is None:
            return "nothing"
        return "images" if self.family.recurrent else "starts"

    @property
    def family(self) -> Family:
        return self.prepared.files.family

    @property
    def output(self) -> Path:
        return Path(self.settings.output)

    @property
    def sharded(self) -> bool:
        """Whether ranks hold shards of each other's weights."""
        return bool(self.args.fsdp) or self.args.deepspeed is not None


def make_context(settings: RunSettings, prepared: Prepared, start: Start) -> TrainingContext:
    """Settle device, precision, plans and isolation of a run.

    Raises:
        ConfigError: for settings that cannot work together, or a checkpoint of another precision.
    """
    precision = choose_precision(settings.model)
    args = training_arguments(settings, precision)
    if args.device.type == "cpu":
        keep_freed_memory()
    plans = _plans(settings, prepared, start, args.world_size)
    start.check_precision(name_of(precision))
    isolation = choose_isolation(prepared.files.family, args.device)
    cost = model_cost(settings.model.recipe, prepared.files.shapes)
    shared = decide_sharing(settings, prepared.files, prepared.corpora["train"], cost).line
    return TrainingContext(settings, prepared, start, args, precision, isolation, plans, shared)


def name_of(precision: torch.dtype) -> str:
    """``float32`` or ``bfloat16``."""
    return str(precision).removeprefix("torch.")


def _plans(settings: RunSettings, prepared: Prepared, start: Start, world_size: int) -> dict[Split, Plan]:
    plans: dict[Split, Plan] = {"train": start.plan(settings, world_size)}
    held_out = prepared.corpora.get("eval")
    if held_out is not None:
        costs = held_out.costs(model_cost(settings.model.recipe, prepared.files.shapes))
        plans["eval"] = sequential_plan(held_out.lengths, settings.batch.spec(), world_size=world_size, costs=costs)
    return plans
