"""Run files of LLaMA-Factory that both tools train with, as a user would write them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

BASE: dict[str, Any] = {
    "model_name_or_path": "model",
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "full",
    "dataset": "pairs",
    "dataset_dir": "data",
    "template": "qwen2_vl",
    "cutoff_len": 4096,
    "disable_shuffling": True,
    "per_device_train_batch_size": 2,
    "learning_rate": 1.0e-3,
    "max_steps": 20,
    "logging_steps": 1,
    "save_strategy": "no",
    "overwrite_output_dir": True,
    "report_to": "none",
    "use_cpu": True,
}
ADAPTER = "adapter"
"""Folder of the adapter that LLaMA-Factory trains first, for both to go on from: each draws its own otherwise."""
LORA: dict[str, Any] = {"finetuning_type": "lora", "lora_rank": 4, "learning_rate": 5.0e-3}
MAKE_ADAPTER: dict[str, Any] = {**BASE, **LORA, "max_steps": 3, "output_dir": ADAPTER}


@dataclass(frozen=True, slots=True)
class Case:
    """Keys over ``BASE``."""

    name: str
    given: dict[str, Any] = field(default_factory=dict)
    steps: int = 20


KEPT_BACK: dict[str, Any] = {
    **{"dataset": "mixed", "max_steps": -1, "num_train_epochs": 1.0, "per_device_train_batch_size": 2},
    **{"lr_scheduler_type": "cosine", "warmup_steps": 3},
}
CASES = (
    Case("full"),
    Case("full, accumulation of 4", {"gradient_accumulation_steps": 4}),
    Case("full, tower and merger learn", {"freeze_vision_tower": False, "freeze_multi_modal_projector": False}),
    Case("lora", {**LORA, "adapter_name_or_path": ADAPTER}),
    Case("lora, accumulation of 4", {**LORA, "adapter_name_or_path": ADAPTER, "gradient_accumulation_steps": 4}),
    Case("mask_history", {"mask_history": True}),
    Case("train_on_prompt", {"train_on_prompt": True}),
    Case("two data sets", {"dataset": "pairs,tagged"}),
    Case("images above the limit", {"image_max_pixels": 20_000}),
    Case("weight decay, clipping, SGD", {"weight_decay": 0.1, "max_grad_norm": 0.3, "optim": "sgd"}),
    Case("text alone, system, several turns", KEPT_BACK, steps=24),
    Case("named tags", {**KEPT_BACK, "dataset": "mixed,tagged", "num_train_epochs": 2 / 3}, steps=24),
)
LABELS: dict[str, dict[str, Any]] = {
    "answers": {},
    "the last answer": {"mask_history": True},
    "everything": {"train_on_prompt": True},
}
"""What is learned of 200 conversations, by keys of LLaMA-Factory."""


def write(path: Path, given: dict[str, Any], output: str) -> None:
    """The run file of a case."""
    content = {**BASE, **given, "output_dir": output}
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
