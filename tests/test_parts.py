"""Selectors name layers as Python slices do; places of parameters, and what is counted by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import tiny
from triptych.errors import ConfigError
from triptych.family.family import FAMILIES, Family
from triptych.family.selectors import Part, Place, check_nested, narrowest, parse_selector
from triptych.family.shapes import read_shapes
from triptych.forward.attention import IMPLEMENTATIONS, Attention
from triptych.forward.batch import Batch, build_batch
from triptych.forward.flops import FlopCounter
from triptych.forward.memory import MemoryModel, RowSize, StepOptions
from triptych.forward.row_forward import RowForward
from triptych.model.loading import PixelNormalizer, load_model
from triptych.model.parts import PartMap
from triptych.model.qlora import BYTES_PER_WEIGHT, quantised_weights
from triptych.model.trainable import set_up_training
from triptych.run.prepare import prepare
from triptych.run.run_file import load
from triptych.run.settings import ModelSettings
from triptych.terminal import Terminal

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

COUNTS: dict[Part, int] = {"vision": 4, "merger": 0, "language": 6}
ends = st.none() | st.integers(-8, 8)


@given(st.sampled_from(["vision", "language"]), ends, ends)
def test_a_slice_holds_the_layers_that_python_would_take(part: Part, start: int | None, stop: int | None) -> None:
    count = COUNTS[part]
    text = f"{part}[{'' if start is None else start}:{'' if stop is None else stop}]"
    there = all(end is None or -count <= end <= count for end in (start, stop))
    empty = start is not None and stop is not None and not range(count)[start:stop]
    if empty or not there:
        with pytest.raises(ConfigError, match=f"{part} has {count} layers"):
            parse_selector(text).span(COUNTS)
        return
    span = parse_selector(text).span(COUNTS)
    held = [layer for layer in range(-1, count + 1) if span.holds(Place(part, layer))]
    assert [layer for layer in held if 0 <= layer < count] == list(range(count))[start:stop]
    assert (-1 in held) == (start is None), "what runs before the layers goes with the first of them"
    assert (count in held) == (stop is None), "what runs after them goes with the last"


@pytest.mark.parametrize(
    "text",
    ["", "Language", "language[", "language[]", "language[1]", "language[1:2:3]", "language[a:]", "head", "[:2]"],
)
def test_what_is_no_selector_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"is no part of a model; write vision, merger, language, or a slice .*\[:20\]"
    ):
        parse_selector(text)


def test_the_narrower_selector_decides() -> None:
    found = [parse_selector(text).span(COUNTS) for text in ("language", "language[2:]", "language[3:5]", "vision")]
    check_nested(found, "rates")
    decides = [span.text for layer in range(-1, 7) if (span := narrowest(found, Place("language", layer)))]
    assert decides == [*["language"] * 3, "language[2:]", *["language[3:5]"] * 2, *["language[2:]"] * 2]
    assert narrowest(found, Place("merger", 0)) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_places_follow_the_order_of_every_family(tmp_path: Path, family: str) -> None:
    base = tiny.write_model(tmp_path / "base", family=family)
    model = load_model(ModelSettings(path=str(base)))
    parts = PartMap(model, FAMILIES[family])
    assert parts.counts == read_shapes(model.config.to_dict()).layers
    for name, _ in model.named_parameters():
        place = parts.place(name)
        layers = parts.counts[place.part]
        if "visual.merger" in name or "deepstack" in name:
            assert place == Place("merger", 0)
        elif ".layers." in name or ".blocks." in name:
            assert f".{place.layer}." in name
        elif "embed" in name:
            assert place.layer == -1, name
        else:
            assert place == Place("language", layers), name


@pytest.fixture
def row(small_model_dir: Path, tmp_path: Path) -> tuple[Batch, PixelNormalizer]:
    data = tiny.write_dataset(tmp_path, 24)
    prepared = prepare(load(tiny.write_run(tmp_path, small_model_dir, data)), ("train",), Terminal())
    corpus = prepared.corpora["train"]
    order = np.argsort(-corpus.lengths.patches)[:12].tolist()
    return build_batch(corpus, order, filler=prepared.encoder.template.filler()), PixelNormalizer(prepared.files)


TOWER = ["vision", "merger"]
WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "upper blocks": {"freeze": ["vision[:1]"]},
    "last layer": {"freeze": [*TOWER, "language[:2]"]},
    "lora": {"train": "lora", "freeze": TOWER},
    "lora, last layer": {"train": "lora", "freeze": TOWER, "lora": {"targets": {"language[2:]": "all-linear"}}},
    "lora, dropout": {"train": "lora", "lora": {"dropout": 0.1}},
    "dora": {"train": "lora", "freeze": TOWER, "lora": {"dora": True}},
    "mixed": {"train": "lora", "freeze": ["vision"], "full": ["merger"]},
}


def set_up(model_dir: Path, how: dict[str, Any], dtype: torch.dtype) -> tuple[torch.nn.Module, Any, Family]:
    settings = ModelSettings.model_validate({"path": str(model_dir), "attention": "eager", **how})
    family = FAMILIES["qwen2_vl"]
    loaded = load_model(settings)
    Attention(settings.attention, *IMPLEMENTATIONS[settings.attention]).install(loaded)
    model = set_up_training(loaded, family, settings, dtype).train()
    return model, model.config, family


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("way", WAYS)
def test_the_memory_estimate_is_what_a_step_keeps(
    small_model_dir: Path, row: tuple[Batch, PixelNormalizer], way: str, dtype: torch.dtype
) -> None:
    batch, normalizer = row
    how = {**WAYS[way], "attention": "sdpa"}
    model, config, family = set_up(small_model_dir, how, dtype)
    kept: dict[int, torch.UntypedStorage] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype, enabled=dtype is not torch.float32),
    ):
        RowForward(normalizer).summed_loss(model, batch)
    size = RowSize(batch.input_ids.shape[1], len(batch.pixels), len(batch.targets))
    step = MemoryModel(model, family, config, dtype, StepOptions(checkpointing=False)).step(size)
    measured = sum(storage.nbytes() for storage in kept.values())
    assert 0.85 < measured / step.activations < 1.15
    stored = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    assert step.weights == sum(stored.values()), "copies that are trained in full have their originals beside them"
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (step.gradients, step.optimizer) == (4 * learning, 8 * learning)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "dora"])
def test_flops_are_those_that_torch_counts(small_model_dir: Path, row: tuple[Batch, PixelNormalizer], way: str) -> None:
    whole, normalizer = row
    (batch, *_) = whole.unpack()  # eager attention computes what a row's mask then hides
    model, config, family = set_up(small_model_dir, WAYS[way], torch.float32)
    with FlopCounterMode(display=False) as counted:
        RowForward(normalizer).summed_loss(model, batch).backward()  # type: ignore[no-untyped-call]
    assert FlopCounter(model, family, config).row(batch) == pytest.approx(counted.get_total_flops(), rel=0.06)


def test_four_bit_weights_are_planned_at_four_bits_and_their_scales(small_model_dir: Path) -> None:
    how = {"train": "qlora", "freeze": TOWER}
    model, config, family = set_up(small_model_dir, how, torch.bfloat16)
    packed = set(quantised_weights(model, family))
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert packed == {name for name in sizes if "language_model" in name and name.endswith("base_layer.weight")}
    size = RowSize(10, 0, 2)
    wide = MemoryModel(model, family, config, torch.bfloat16, StepOptions(checkpointing=False)).step(size)
    narrow = MemoryModel(model, family, config, torch.bfloat16, StepOptions(checkpointing=False, packed=packed)).step(
        size
    )
    saved = sum(sizes[name] for name in packed) * (2 - BYTES_PER_WEIGHT)
    assert wide.weights - narrow.weights == pytest.approx(saved, abs=len(packed))
