"""Run files of tools that are not translated, by keys that only they have: where to read what to write instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PAGE = "docs/migrating.md"
SIGNS: dict[str, tuple[str, ...]] = {
    "ms-swift": ("train_type", "tuner_type", "model_type", "max_pixels", "train_dataloader_shuffle", "torch_dtype"),
    "TRL": ("dataset_name", "max_length", "dataset_text_field", "assistant_only_loss", "use_peft", "lora_r"),
    "Axolotl": ("base_model", "datasets", "micro_batch_size", "sequence_len", "adapter", "chat_template"),
}
NATIVE = ("model", "data", "batch")


def advice(content: Mapping[str, Any]) -> str | None:
    """What to say about a file of another tool; None for a native one, or one that shows no tool."""
    if any(isinstance(content.get(group), Mapping) for group in NATIVE):
        return None
    found = {tool: sum(key in content for key in keys) for tool, keys in SIGNS.items()}
    tool = max(found, key=lambda name: found[name])
    if found[tool] < 2:
        return None
    return f"this looks like a run file of {tool}, which is not translated; {PAGE} shows each setting's name here"
