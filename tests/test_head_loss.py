"""The loss made chunk by chunk at the head: transformers' own values, and never more logits than allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
from triptych.family.family import FAMILIES
from triptych.forward.batch import Batch, build_batch
from triptych.forward.row_forward import RowForward
from triptych.model.loading import PixelNormalizer, load_model
from triptych.model.trainable import set_up_training
from triptych.run.prepare import prepare
from triptych.run.run_file import load
from triptych.run.settings import ModelSettings
from triptych.terminal import Terminal

# peft 0.21 still reads the attribute that transformers 5.23 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

FEW_TOKENS = 3
EMBEDDING = "model.language_model.embed_tokens.weight"
"""It is the head's too."""
HOW: dict[str, dict[str, Any]] = {
    "full": {},
    "frozen language": {"freeze": ["language"]},
    "lora": {"train": "lora", "lora": {"rank": 4}},
    "head trained beside adapters": {"train": "lora", "lora": {"rank": 4}, "full": ["language[:0]"]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("head")
    tiny.write_model(folder / "model", max_pixels=96 * 96)
    tiny.write_dataset(folder, 6, seed=3)
    return folder


def row_of(folder: Path, indices: list[int]) -> tuple[Batch, PixelNormalizer]:
    prepared = prepare(load(tiny.write_run(folder, folder / "model", folder / "train.json")), ("train",), Terminal())
    batch = build_batch(prepared.corpora["train"], indices, filler=prepared.encoder.template.filler())
    return batch, PixelNormalizer(prepared.files)


def limit(model: torch.nn.Module) -> int:
    return FEW_TOKENS * 4 * model.config.text_config.vocab_size


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


class LargestLogits(TorchDispatchMode):
    """Most values of a tensor that any operation made, of those as wide as the vocabulary, the head's matrix aside."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.matrix = width, vocabulary
        self.values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for item in made if isinstance(made, (tuple, list)) else (made,):
            shape = tuple(item.shape) if isinstance(item, torch.Tensor) else ()
            if shape[-1:] == (self.vocabulary,) and shape != self.matrix:
                self.values = max(self.values, item.numel())
        return made


@pytest.mark.parametrize("how", HOW)
def test_loss_and_gradients_are_those_of_whole_logits(folder: Path, how: str) -> None:
    settings = ModelSettings(path=str(folder / "model"), **HOW[how])
    model = set_up_training(load_model(settings), FAMILIES["qwen2_vl"], settings, torch.float32).train()
    batch, normalizer = row_of(folder, [0, 1, 2, 3])
    assert len(batch.targets) > 2 * FEW_TOKENS
    forward = RowForward(normalizer, logits_limit=limit(model))
    expected = functional.cross_entropy(forward.logits(model, batch).float(), batch.targets, reduction="sum")
    wanted = gradients(model, expected)
    found = forward.summed_loss(model, batch)
    assert torch.allclose(found, expected, rtol=1e-6)
    made = gradients(model, found)
    assert made.keys() == wanted.keys()
    for name in wanted:
        assert (made[name] - wanted[name]).norm() <= 1e-5 * wanted[name].norm(), name


def test_an_untied_head_with_an_adapter_of_its_own_counts(folder: Path) -> None:
    settings = ModelSettings(path=str(folder / "model"))
    model = load_model(settings)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["lm_head", "q_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    batch, normalizer = row_of(folder, [0, 1, 2])
    forward = RowForward(normalizer, logits_limit=limit(model))
    wanted = gradients(
        adapted, functional.cross_entropy(forward.logits(adapted, batch), batch.targets, reduction="sum")
    )
    made = gradients(adapted, forward.summed_loss(adapted, batch))
    assert any("lm_head.lora_A" in name for name in made)
    for name in wanted:
        assert (made[name] - wanted[name]).norm() <= 1e-5 * wanted[name].norm(), name


@pytest.mark.parametrize("how", ["full", "head trained beside adapters"])
def test_no_tensor_of_logits_is_larger_than_allowed(folder: Path, how: str) -> None:
    settings = ModelSettings(path=str(folder / "model"), **HOW[how])
    model = set_up_training(load_model(settings), FAMILIES["qwen2_vl"], settings, torch.float32)
    batch, normalizer = row_of(folder, [0, 1, 2, 3])
    text = model.config.text_config
    with LargestLogits(text.hidden_size, text.vocab_size) as largest:
        RowForward(normalizer, logits_limit=limit(model)).summed_loss(model, batch).backward()
    assert 0 < largest.values * 4 <= limit(model)


def test_in_16_bits_the_gradients_are_no_worse_than_those_of_whole_logits(folder: Path) -> None:
    settings = ModelSettings(path=str(folder / "model"))
    model = load_model(settings)
    batch, normalizer = row_of(folder, [0, 1, 2, 3])
    forward = RowForward(normalizer, logits_limit=limit(model))
    exact = gradients(model, forward.summed_loss(model, batch))[EMBEDDING]
    with torch.autocast("cpu", torch.bfloat16):
        whole = functional.cross_entropy(forward.logits(model, batch).float(), batch.targets, reduction="sum")
        chunks = forward.summed_loss(model, batch)
    assert torch.allclose(whole, chunks, rtol=1e-5)
    errors = []
    for loss in (chunks, whole):
        found = gradients(model, loss)[EMBEDDING]
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors[0] < 1.1 * errors[1] < 0.1


def test_without_gradients_the_loss_is_the_same(folder: Path) -> None:
    model = load_model(ModelSettings(path=str(folder / "model")))
    batch, normalizer = row_of(folder, [0, 1])
    forward = RowForward(normalizer, logits_limit=limit(model))
    expected = forward.summed_loss(model, batch)
    with torch.no_grad():
        assert torch.equal(forward.summed_loss(model, batch), expected)


def test_a_row_without_targets_has_no_loss_and_still_a_gradient(folder: Path) -> None:
    model = load_model(ModelSettings(path=str(folder / "model")))
    batch, normalizer = row_of(folder, [])
    assert not len(batch.targets)
    loss = RowForward(normalizer).summed_loss(model, batch)
    assert loss.item() == 0
    assert all(not gradient.any() for gradient in gradients(model, loss).values())


def test_the_head_is_left_as_it_was(folder: Path) -> None:
    model = load_model(ModelSettings(path=str(folder / "model")))
    batch, normalizer = row_of(folder, [0, 1])
    forward = RowForward(normalizer)
    before = forward.logits(model, batch)
    forward.summed_loss(model, batch)
    assert torch.equal(forward.logits(model, batch), before)
    assert not model.lm_head._forward_hooks
    assert not model.lm_head._forward_pre_hooks


def test_the_setting_reaches_the_loss(folder: Path) -> None:
    run = tiny.write_run(folder, folder / "model", folder / "train.json")
    assert load(run).train.logits_bytes is None
    assert load(run, ["train.logits_mb=64"]).train.logits_bytes == 64 * 2**20
