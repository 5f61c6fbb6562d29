"""Compiled layers compute what they compute uncompiled, and one compilation serves all layers and rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import _dynamo as dynamo
from torch._dynamo.utils import counters
from transformers import AutoModelForImageTextToText

import tiny
from families import FAMILIES
from triptych.errors import ConfigError
from triptych.forward.attention import install_attention
from triptych.forward.batch import build_batch
from triptych.forward.isolation import choose_isolation
from triptych.forward.row_forward import RowForward
from triptych.model import compile
from triptych.model.compile import check_compiler, compile_layers
from triptych.model.loading import PixelNormalizer
from triptych.run.prepare import Prepared, prepare
from triptych.run.reporter import LogReporter
from triptych.run.run_file import load
from triptych.terminal import Terminal
from triptych.training.train import train

pytestmark = [
    # torch's tracer looks at the gradients of whatever it meets.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
    # inductor, torch 2.13, uses parts of torch and Python that are on their way out.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

CPU = torch.device("cpu")
ROWS = ([0, 1, 2, 3], [4, 5], [6], [7, 1, 3])


@pytest.fixture(
    scope="module",
    params=[family if family == "qwen2_vl" else pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES],
)
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("compiling")
    model = tiny.write_model(folder / "model", family=request.param, max_pixels=96 * 96)
    data = tiny.write_dataset(folder, 8, seed=3)
    return prepare(load(tiny.write_run(folder, model, data)), ("train",), Terminal())


def losses(prepared: Prepared, *, backend: str | None, checkpointing: bool) -> list[float]:
    """Of some rows, and the norm of the gradients they leave behind."""
    family = prepared.files.family
    model = AutoModelForImageTextToText.from_pretrained(prepared.files.folder).train()
    isolation = choose_isolation(family, CPU)
    attention = install_attention(model, "auto", CPU, torch.float32, recurrent=isolation.recurrent)
    if backend:
        assert compile_layers(model, family, backend=backend) >= 2 * model.config.text_config.num_hidden_layers
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    forward = RowForward(PixelNormalizer(prepared.files), isolation, attention)
    found = []
    for row in ROWS:
        batch = build_batch(prepared.corpora["train"], row, filler=prepared.encoder.template.filler())
        loss = forward.summed_loss(model, batch)
        loss.backward()
        found.append(loss.item())
    found.append(float(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()))
    return found


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_a_compiled_model_computes_the_same(prepared: Prepared, checkpointing: bool) -> None:
    """Through the tracer and back, without making code: that takes minutes and a compiler, see the slow test."""
    dynamo.reset()
    counters.clear()
    expected = losses(prepared, backend=None, checkpointing=checkpointing)
    assert not counters["stats"]
    found = losses(prepared, backend="aot_eager", checkpointing=checkpointing)
    assert found == pytest.approx(expected, rel=1e-5)
    assert counters["stats"]["unique_graphs"] > 0, "something was compiled"


def run(folder: Path, model: Path, data: Path, name: str, *overrides: str) -> list[float]:
    settings = load(
        tiny.write_run(folder, model, data), (f"output={folder / name}", "train.rows_per_step=2", *overrides)
    )
    out = LogReporter()
    train(settings, prepare(settings, ("train",), out), out)
    lines = [json.loads(line) for line in (folder / name / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
def test_a_compiled_run_draws_the_same_curve(small_model_dir: Path, tmp_path: Path) -> None:
    data = tiny.write_dataset(tmp_path, 16)
    plain = run(tmp_path, small_model_dir, data, "plain")
    compiled = run(tmp_path, small_model_dir, data, "compiled", "train.compile=true")
    assert len(plain) == 2
    assert compiled == pytest.approx(plain, rel=1e-4)


def test_without_a_compiler_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile.shutil, "which", lambda _: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"train\.compile needs a compiler \(g\+\+ or clang\+\+\)"):
        check_compiler(CPU)
