"""What learns: freeze parts and layers, train others in full, put adapters beside the rest."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel

from triptych.errors import ConfigError
from triptych.family.family import Family
from triptych.family.recipe import Recipe, check_rates
from triptych.family.selectors import narrowest
from triptych.model.parts import HEAD, PartMap, inside, role
from triptych.run.settings import LoraSettings, ModelSettings, RunSettings

if TYPE_CHECKING:
    from peft import PeftModel


def set_up_training(
    model: PreTrainedModel, family: Family, settings: ModelSettings, frozen_dtype: torch.dtype
) -> PreTrainedModel | PeftModel:
    """Freeze what stays, add adapters where asked; what does not learn is cast to ``frozen_dtype``.

    What is trained in full beside adapters becomes a copy of its own (peft's ``modules_to_save``), so that the
    checkpoint of adapters holds it. Such a copy keeps the original beside it.

    Raises:
        ConfigError: if nothing is left to train, or a setting names layers that the model does not have.
    """
    parts = PartMap(model, family)
    recipe = settings.recipe(parts.counts)
    for name, parameter in model.named_parameters():
        learns = recipe.in_full(parts.place(name))
        _cast(parameter, torch.float32 if learns else frozen_dtype)
        parameter.requires_grad_(learns)
    if settings.train == "full":
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ConfigError("model.freeze: nothing would learn; take a part or layer out")
        return model
    adapted = _with_adapters(model, parts, recipe, settings.lora)
    for name, parameter in adapted.named_parameters():
        if role(name, parameter) == "original":
            _cast(parameter, frozen_dtype)
    return adapted


def parameter_rates(model: nn.Module, family: Family, settings: RunSettings) -> dict[str, float]:
    """Peak learning rate of every parameter that learns, by its name.

    Args:
        model: set up for training.
        family: names its parts.
        settings: of the run.

    Raises:
        ConfigError: if a rate is for layers in which nothing learns.
    """
    parts = PartMap(model, family)
    train = settings.train
    wanted = check_rates(settings.model.recipe(parts.counts), train.part_learning_rates, parts.counts)
    by_name = {name: narrowest(wanted, parts.place(name)) for name, p in model.named_parameters() if p.requires_grad}
    used = {span.text for span in by_name.values() if span is not None}
    for text in train.part_learning_rates:
        if text not in used:
            raise ConfigError(f"train.part_learning_rates: nothing that learns is at {text}; leave its rate out")
    rates = train.part_learning_rates
    return {name: train.learning_rate if span is None else rates[span.text] for name, span in by_name.items()}


def _cast(parameter: nn.Parameter, dtype: torch.dtype) -> None:
    """Store a frozen parameter in ``dtype``; packed 4-bit weights, which are integers, stay as they are."""
    if parameter.is_floating_point():
        parameter.data = parameter.data.to(dtype)


def _with_adapters(model: PreTrainedModel, parts: PartMap, recipe: Recipe, lora: LoraSettings) -> PeftModel:
    from peft import LoraConfig, get_peft_model

    layers, weights = _targets(model, parts, recipe)
    if lora.experts:
        experts = [name for name in _expert_weights(model) if recipe.adapted(parts.place(name)) is not None]
        if not experts:
            raise ConfigError("model.lora.experts: the layers that take adapters have no experts; leave it out")
        weights += experts
    elif not layers and not weights:
        raise ConfigError("model.lora.targets: no linear layer is left for adapters")
    if weights and (lora.dropout or lora.dora):
        raise ConfigError(f"model.lora.targets: {weights[0]} is no linear layer and takes neither dropout nor DoRA")
    whole = _whole_modules(model, parts, recipe)
    embedding = any(model.get_submodule(name) is model.get_input_embeddings() for name in whole)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        target_modules=layers,
        target_parameters=weights or None,
        modules_to_save=whole or None,
        # A head that shares the embedding's weights goes on sharing those of its trained copy.
        ensure_weight_tying=embedding and _tied(model),
    )
    return get_peft_model(model, config)


def _targets(model: PreTrainedModel, parts: PartMap, recipe: Recipe) -> tuple[list[str], list[str]]:
    """Full names of the linear layers and of the single weights (a router's) that take adapters."""
    linear: list[str] = []
    weights: list[str] = []
    wanted: set[tuple[str, str]] = set()
    matched: set[tuple[str, str]] = set()
    for name, module in model.named_modules():
        adapted = recipe.adapted(parts.place(name))
        if adapted is None:
            continue
        span, targets = adapted
        if targets == "all-linear":
            chosen = isinstance(module, nn.Linear) and not name.endswith((HEAD, ".gate", "_gate"))
        else:
            group = span.text if recipe.by_part else ""
            wanted |= {(group, end) for end in targets}
            fits = isinstance(module, nn.Linear) or _routes(module)
            ends = {(group, end) for end in targets if fits and (name == end or name.endswith(f".{end}"))}
            matched |= ends
            chosen = bool(ends)
        if chosen and name.endswith(HEAD) and _tied(model):
            raise ConfigError(
                f"model.lora.targets: {name} shares its weights with the embedding, and an adapter on one of them "
                "cannot be merged; train both with `full: ['language[:0]']`, the embedding, instead"
            )
        if chosen:
            linear += [name] if isinstance(module, nn.Linear) else []
            weights += [] if isinstance(module, nn.Linear) else [f"{name}.weight"]
    if wanted - matched:
        raise ConfigError(_no_such_layer(wanted - matched, model, parts, recipe))
    return linear, weights


def _tied(model: PreTrainedModel) -> bool:
    """Whether the head's weights are the embedding's."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return isinstance(head, nn.Linear) and head.weight is model.get_input_embeddings().weight


def _routes(module: nn.Module) -> bool:
    """Whether this is the router of a mixture of experts: a matrix of its own that is no ``nn.Linear``."""
    return type(module).__name__.endswith("Router")


def _expert_weights(model: PreTrainedModel) -> Iterator[str]:
    """Full names of the experts' weights, (experts, out, in) each."""
    for name, parameter in model.named_parameters():
        if ".experts." in name and parameter.ndim == 3:
            yield name


def _no_such_layer(missing: Collection[tuple[str, str]], model: PreTrainedModel, parts: PartMap, recipe: Recipe) -> str:
    """Say which targets match nothing, and what there is."""
    known: dict[str, set[str]] = {}
    for name, module in model.named_modules():
        adapted = recipe.adapted(parts.place(name))
        if adapted is not None and isinstance(module, nn.Linear) and not name.endswith(HEAD):
            *_, parent, own = name.split(".")
            known.setdefault(adapted[0].text, set()).add(f"{parent}.{own}" if own.isdecimal() else own)
    said = []
    for group, name in sorted(missing):
        there = sorted(known.get(group, set()) if group else set().union(*known.values()))
        near = difflib.get_close_matches(name, there, n=1, cutoff=0.4)
        meant = f" (did you mean {near[0]}?)" if near else ""
        where = group or "the parts that take adapters"
        said.append(f"{name!r} matches no linear layer of {where}{meant}; there are: {', '.join(there)}")
    return "model.lora.targets: " + "\n".join(said)


def _whole_modules(model: PreTrainedModel, parts: PartMap, recipe: Recipe) -> list[str]:
    """Full names of the largest modules of which everything is trained in full beside the adapters."""
    learned = {name: recipe.in_full(parts.place(name)) for name, _ in model.named_parameters()}

    def search(name: str, module: nn.Module) -> Iterator[str]:
        held = [learns for own, learns in learned.items() if not name or inside(own, name)]
        if not any(held):
            return
        # Lists are never called, and models hold what adapters and checkpointing look for by name.
        if all(held) and not isinstance(module, nn.ModuleList | nn.ModuleDict | PreTrainedModel):
            yield name
            return
        for own, child in module.named_children():
            yield from search(f"{name}.{own}" if name else own, child)

    whole = list(search("", model))
    for name, learns in learned.items():
        if learns and not any(inside(name, module) for module in whole):
            raise ConfigError(f"model.full: {name} is in no module of its own and cannot be trained beside adapters")
    return whole


def checkpoint_layers(model: PreTrainedModel | PeftModel) -> None:
    """Let every layer of ``model`` keep only its input.

    transformers also lets the outputs of all embeddings require gradients, those of the vision tower too: a frozen
    tower then runs backward for nothing, which doubled the step (docs/benchmarks.md). Only reentrant checkpointing
    needs that.
    """
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.disable_input_require_grads()
