"""Load a model for training: weights, attention, and what of it learns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from triptych.family.family import Family
from triptych.forward.attention import Attention, install_attention
from triptych.forward.isolation import Isolation
from triptych.model.device import allow_any_length
from triptych.model.loading import load_model
from triptych.model.patch_embed import project_by_product
from triptych.model.qlora import four_bit, require_four_bit
from triptych.model.trainable import checkpoint_layers, set_up_training
from triptych.model.trained import continue_adapters, start_model
from triptych.run.settings import ModelSettings

if TYPE_CHECKING:
    from peft import PeftModel


def load_for_training(
    settings: ModelSettings,
    family: Family,
    precision: torch.dtype,
    device: torch.device,
    isolation: Isolation,
    *,
    checkpointing: bool = False,
    shares: bool = False,
) -> tuple[PreTrainedModel | PeftModel, Attention]:
    """Load the weights of ``settings.path``, in 4 bits where asked, choose what computes attention on ``device``, and
    decide which of the weights learn.

    With ``checkpointing``, layers keep only their inputs for the backward pass. ``shares`` says whether samples of one
    row share their start.

    Raises:
        ConfigError: if the settings do not fit the model, or this machine cannot compute with 4-bit weights.
        ModelError: if transformers cannot load them.
    """
    if settings.train == "qlora":
        require_four_bit()
        # What is not packed arrives on the GPU as it is loaded; in float32 it might not fit where training would.
        loaded = load_model(settings, dtype=precision, quantization=four_bit(family))
    else:
        loaded = start_model(settings)
    # Before anything is copied: a copy of a part has a config of its own.
    attention = install_attention(
        loaded, settings.attention, device, precision, recurrent=isolation.recurrent, shares=shares
    )
    project_by_product(loaded)
    allow_any_length(device)
    model = set_up_training(loaded, family, settings, precision)
    if settings.adapter is not None and not isinstance(model, PreTrainedModel):
        continue_adapters(model, Path(settings.adapter), settings.path)
    if checkpointing:
        checkpoint_layers(model)
    return model, attention
