"""A trained folder as models: as the trainer held it, and as one set of weights without adapters."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from triptych.errors import ModelError
from triptych.family.adapters import read_adapter_config
from triptych.family.family import Family
from triptych.family.fingerprint import check_base
from triptych.family.folders import ADAPTER_CONFIG
from triptych.model.intact import check_numbers, load_whole, named
from triptych.model.loading import load_model
from triptych.model.parts import PartMap
from triptych.run.settings import ModelSettings

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER_WEIGHTS = "adapter_model.safetensors"

# What safetensors calls the types that weights come in.
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def as_trained(
    settings: ModelSettings, folder: Path, family: Family, precision: torch.dtype
) -> PreTrainedModel | PeftModel:
    """The model as the trainer held it: adapters beside the base, what learned in float32, the rest in ``precision``.

    Raises:
        ModelError: if transformers or peft cannot load it.
    """
    if (folder / ADAPTER_CONFIG).exists():
        # Marked as trainable, peft's model says itself what learned: adapters, and modules trained in full.
        adapted = _adapted(settings, folder, trainable=True)
        frozen = [parameter for parameter in adapted.parameters() if not parameter.requires_grad]
        model: PreTrainedModel | PeftModel = adapted
    else:
        model = load_model(_from(settings, str(folder)))
        kept = frozen_names(model, family, settings)
        frozen = [value for name, value in model.named_parameters() if name in kept]
    for parameter in frozen:
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(precision)
    model.requires_grad_(False)
    model.train(False)
    return model


def merged(settings: ModelSettings, folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The trained weights without adapters: merged in float32, then rounded once to ``dtype``.

    Raises:
        ModelError: if transformers or peft cannot load them, or a weight does not fit in ``dtype``.
    """
    if (folder / ADAPTER_CONFIG).exists():
        model: PreTrainedModel = _adapted(settings, folder, trainable=False).merge_and_unload()
    else:
        model = load_model(_from(settings, str(folder)))
    # Only the parameters: buffers such as the frequencies of the rotary embedding stay as `from_pretrained` makes them.
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(dtype)
        if not parameter.data.isfinite().all():
            raise ModelError(f"{name}: a weight is not a number, or too large for {dtype}; use bfloat16 or float32")
    model.requires_grad_(False)
    model.train(False)
    return model


def load_trained(settings: ModelSettings, folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """A checkpoint for use: the weights that ``export`` would write in ``dtype``.

    Raises:
        ModelError: if transformers or peft cannot load them, or a weight does not fit in ``dtype``.
    """
    if (folder / ADAPTER_CONFIG).exists():
        return merged(settings, folder, dtype)
    return load_model(settings.model_copy(update={"path": str(folder)}), dtype=dtype)


def start_model(settings: ModelSettings) -> PreTrainedModel:
    """The weights, in float32, that a run of whole weights starts from: its base, adapters merged where it names some.

    Raises:
        ModelError: if transformers or peft cannot load them.
    """
    if settings.adapter is not None and settings.train == "full":
        return merged(settings, Path(settings.adapter), torch.float32)
    return load_model(_from(settings, settings.path))


def continue_adapters(model: PeftModel, folder: Path, base: str) -> None:
    """Give a model's fresh adapters, and what is trained in full beside them, the weights in ``folder``.

    Raises:
        ModelError: if they were trained on another base than ``base``, if the file holds other tensors than this run
            trains, naming the first, or if one is not finite.
    """
    from peft import set_peft_model_state_dict

    check_base(folder, base)
    wanted = _check_adapters(model, folder)
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise ModelError(
                f"{name} of the adapters in {folder} is {tuple(tensor.shape)}, and {tuple(wanted[name].shape)} in this "
                "model: they belong to another base"
            )
    check_numbers(str(folder), tensors.items())
    set_peft_model_state_dict(model, tensors)


def _adapted(settings: ModelSettings, folder: Path, *, trainable: bool) -> PeftModel:
    from peft import PeftModel

    read_adapter_config(folder)
    check_base(folder, settings.path)
    base = load_model(_from(settings, settings.path))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # said below, as an error
            adapted = PeftModel.from_pretrained(base, folder, is_trainable=trainable)
    except (OSError, ValueError, TypeError, RuntimeError, KeyError) as error:
        raise ModelError(f"cannot load the adapters in {folder}: {error}") from error
    check_numbers(str(folder), _check_adapters(adapted, folder).items())
    return adapted


def _check_adapters(adapted: PeftModel, folder: Path) -> dict[str, torch.Tensor]:
    """See that the file of adapters holds what the model takes, and nothing else: peft itself only warns.

    Returns:
        The model's own tensors by their names in the file.

    Raises:
        ModelError: naming the first tensors.
    """
    from peft import get_peft_model_state_dict

    stored = set(stored_tensors(folder, ADAPTER_WEIGHTS))
    # Whether the vocabulary grew, peft would ask of the base by the name it had, which may be gone: it never does here.
    tensors: dict[str, torch.Tensor] = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    wanted = set(tensors)
    for names, said in ((wanted - stored, "lack"), (stored - wanted, "hold, and this base does not take,")):
        if names:
            raise ModelError(
                f"the adapters in {folder} {said} {named(sorted(names))}: they belong to another model or were trained "
                "on other layers (model.lora.targets, model.full), or their file was changed"
            )
    return tensors


def frozen_names(model: PreTrainedModel, family: Family, settings: ModelSettings) -> set[str]:
    """Names of the parameters that training must not change, in a model without adapters."""
    parts = PartMap(model, family)
    recipe = settings.recipe(parts.counts)
    return {name for name, _ in model.named_parameters() if not recipe.learns(parts.place(name))}


def reload(folder: Path) -> PreTrainedModel:
    """An exported folder as a server loads it, in the precision that its ``config.json`` names.

    Raises:
        ModelError: if transformers cannot load it, or not all of it.
    """
    model = load_whole(str(folder), dtype="auto")
    model.requires_grad_(False)
    model.train(False)
    return model


def _from(settings: ModelSettings, path: str) -> ModelSettings:
    """Settings to load ``path`` with an attention that runs in every precision and on every device."""
    return settings.model_copy(update={"path": path, "attention": "auto"})


def stored_tensors(folder: Path, single: str = SAFE_WEIGHTS_NAME) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of every tensor in the safetensors files of a model folder, by its name there.

    Args:
        folder: where they are.
        single: name of the file, where there is no index of several.

    Raises:
        ModelError: if there are none, or one is damaged.
    """
    if (folder / SAFE_WEIGHTS_INDEX_NAME).exists():
        index = json.loads((folder / SAFE_WEIGHTS_INDEX_NAME).read_text(encoding="utf-8"))
        names = sorted(set(index["weight_map"].values()))
    else:
        names = [single]
    found = {}
    for name in names:
        try:
            with safe_open(folder / name, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118  # not a mapping
                    piece = file.get_slice(key)
                    found[key] = (tuple(piece.get_shape()), DTYPES.get(piece.get_dtype(), torch.uint8))
        except (OSError, SafetensorError) as error:
            raise ModelError(f"cannot read the weights {folder / name}: {error}") from error
    return found


def released_dtype(folder: Path) -> torch.dtype:
    """The type that most weights in a model folder have.

    Raises:
        ModelError: if there are no safetensors files.
    """
    weights = dict.fromkeys(DTYPES.values(), 0)
    for shape, dtype in stored_tensors(folder).values():
        if dtype in weights:
            weights[dtype] += math.prod(shape)
    most = max(weights, key=lambda dtype: weights[dtype])
    return most if weights[most] else torch.float32


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Without what transformers shows per model loaded: progress bars, and that greedy answers ignore temperature 0."""
    shown = is_progress_bar_enabled()
    disable_progress_bar()  # type: ignore[no-untyped-call]
    checks = logging.getLogger("transformers.generation.configuration_utils")
    level = checks.level
    checks.setLevel(logging.ERROR)
    try:
        yield
    finally:
        checks.setLevel(level)
        if shown:
            enable_progress_bar()  # type: ignore[no-untyped-call]


def perturb(model: nn.Module, dtype: torch.dtype, seed: int) -> None:
    """Move every weight at random by up to ``dtype``'s last place, then round it to ``dtype``; in place."""
    generator = torch.Generator().manual_seed(seed)
    last_place = torch.finfo(dtype).eps
    for parameter in model.parameters():
        if parameter.is_floating_point():
            noise = torch.rand(parameter.shape, generator=generator).to(parameter.device) * 2 - 1
            parameter.data = (parameter.data.double() * (1 + last_place * noise)).to(dtype)
