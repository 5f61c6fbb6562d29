"""What learns: parts frozen, weights trained in full, adapters beside them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel

from triptych.config import ModelSettings
from triptych.errors import ConfigError
from triptych.family import Family
from triptych.parts import part_of

if TYPE_CHECKING:
    from peft import PeftModel


def set_up_training(
    model: PreTrainedModel, family: Family, settings: ModelSettings, frozen_dtype: torch.dtype
) -> PreTrainedModel | PeftModel:
    """Freeze what stays, add adapters where asked; what does not learn is cast to ``frozen_dtype``.

    Raises:
        ConfigError: if nothing is left to train.
    """
    for name, parameter in model.named_parameters():
        learns = settings.train == "full" and part_of(name, family) not in settings.freeze
        parameter.requires_grad_(learns)
        if not learns:
            parameter.data = parameter.data.to(frozen_dtype)
    if settings.train == "full":
        return model
    from peft import LoraConfig, get_peft_model

    lora = settings.lora
    targets = list(_adapted_layers(model, family, settings))
    if not targets:
        raise ConfigError(
            f"model.lora.targets {lora.targets!r} matches no linear layer of the parts that are not frozen"
        )
    adapters = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets)  # type: ignore[arg-type]
    return get_peft_model(model, adapters)


def _adapted_layers(model: PreTrainedModel, family: Family, settings: ModelSettings) -> Iterator[str]:
    """Full names of the linear layers that take adapters; the vocabulary head never does."""
    wanted = settings.lora.targets
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or name.endswith("lm_head") or part_of(name, family) in settings.freeze:
            continue
        if wanted == "all-linear" or any(name == end or name.endswith(f".{end}") for end in wanted):
            yield name
