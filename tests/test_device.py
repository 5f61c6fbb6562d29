"""What a process does for the device it computes on, and what checkpointing must not do to a frozen tower."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from test_methods import row, write
from triptych.family.family import FAMILIES
from triptych.model.device import allow_any_length
from triptych.model.loading import load_model
from triptych.model.trainable import checkpoint_layers, set_up_training
from triptych.run.run_file import load

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
LORA = {"train": "lora", "freeze": ["vision", "merger"], "lora": {"rank": 2}}
FULL = {"train": "full", "freeze": ["vision", "merger"]}


@pytest.fixture
def _flag_restored() -> Iterator[None]:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    yield
    torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.usefixtures("_flag_restored")
def test_cudnn_is_kept_out_of_attention_on_cuda_only() -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    allow_any_length(torch.device("cpu"))
    assert torch.backends.cuda.cudnn_sdp_enabled()
    allow_any_length(torch.device("cuda"))
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def watch_tower(model: nn.Module) -> list[bool]:
    """Whether what the tower makes requires gradients, each time it runs."""
    seen: list[bool] = []
    tower = next(module for name, module in model.named_modules() if name.endswith("visual"))
    tower.register_forward_hook(lambda _module, _inputs, output: seen.append(output[1].requires_grad))
    return seen


@pytest.mark.parametrize("how", [LORA, FULL], ids=["lora", "full"])
def test_a_frozen_tower_runs_no_backward_under_checkpointing(
    small_model_dir: Path, tmp_path: Path, how: dict[str, object]
) -> None:
    path = write(tmp_path, small_model_dir, how)
    settings = load(path)
    losses, gradients = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = set_up_training(load_model(settings.model), FAMILIES["qwen2_vl"], settings.model, torch.float32).train()
        if checkpointing:
            checkpoint_layers(model)
        seen = watch_tower(model)
        batch, forward = row(path)
        loss = forward.summed_loss(model, batch)
        loss.backward()
        assert seen == [False]
        losses.append(loss.item())
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert losses[0] == losses[1]
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-5, atol=1e-8), name
