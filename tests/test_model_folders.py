"""A model folder that is not what it seems is refused by name, in every command that reads its weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from commands import said

# peft 0.21 still reads the attribute that transformers 5.23 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

Tensors = dict[str, torch.Tensor]
WEIGHTS = "model.safetensors"
LORA = {"train": "lora", "freeze": ["vision"], "lora": {"rank": 2}}


@pytest.fixture
def base(small_model_dir: Path, tmp_path: Path) -> Path:
    """A base that a test may damage."""
    return Path(shutil.copytree(small_model_dir, tmp_path / "base"))


def edit_weights(folder: Path, change: Callable[[Tensors], Tensors | None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors) or tensors, folder / WEIGHTS, metadata={"format": "pt"})


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def write_run(folder: Path, base: Path, **model: Any) -> Path:
    data = tiny.write_dataset(folder, 4, max_images=2)
    sources = {"eval": [{"path": str(data)}]}
    return tiny.write_run(
        folder, base, data, data=sources, model=model, train={"save_every": 1}, eval={"max_new_tokens": 2}
    )


def unchanged(tensors: Tensors) -> Tensors:
    return tensors


def without_tower(tensors: Tensors) -> Tensors:
    return {name: value for name, value in tensors.items() if ".visual." not in name and not name.startswith("visual")}


def wrapped(tensors: Tensors) -> Tensors:
    return {f"module.{name}": value for name, value in tensors.items()}


def quantised(tensors: Tensors) -> Tensors:
    name = next(name for name in tensors if name.endswith("mlp.up_proj.weight"))
    stem = name.removesuffix(".weight")
    value = tensors.pop(name)
    return {**tensors, f"{stem}.qweight": value.to(torch.int32), f"{stem}.scales": value[:1].clone()}


def not_a_number(tensors: Tensors) -> None:
    next(value for name, value in tensors.items() if name.endswith("q_proj.weight"))[0, 0] = torch.nan


def infinite(tensors: Tensors) -> None:
    next(value for name, value in tensors.items() if name.endswith("q_proj.weight"))[0, 0] = torch.inf


def reshaped(tensors: Tensors) -> None:
    name = next(name for name in tensors if name.endswith("up_proj.weight"))
    tensors[name] = tensors[name][:-1].clone()


DAMAGES: list[tuple[str, Callable[[Tensors], Tensors | None], dict[str, Any], str]] = [
    ("no tower", without_tower, {}, "the folder is incomplete"),
    ("wrapped", wrapped, {}, "begin with `module.`: save the model that `module` wraps"),
    ("no head", unchanged, {"tie_word_embeddings": False}, "do not hold 1 tensor (lm_head.weight), which"),
    ("packed", quantised, {}, "quantised there"),
    ("nan", not_a_number, {}, "self_attn.q_proj.weight) hold NaN or infinity"),
    ("infinite", infinite, {}, "self_attn.q_proj.weight) hold NaN or infinity"),
    ("shape", reshaped, {}, "up_proj.weight is (255, 96) in the files and (256, 96) by config.json"),
]


@pytest.mark.parametrize(("change", "config", "expected"), [d[1:] for d in DAMAGES], ids=[d[0] for d in DAMAGES])
@pytest.mark.parametrize("model", [{}, LORA], ids=["full", "lora"])
def test_weights_that_are_not_whole_are_refused(
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Tensors], Tensors | None],
    config: dict[str, Any],
    expected: str,
    model: dict[str, Any],
) -> None:
    edit_weights(base, change)
    edit_config(base, **config)
    code, text = said(capsys, "train", write_run(tmp_path, base, **model))
    assert code == 1
    assert expected in text
    assert str(base) in text
    assert "Traceback" not in text
    assert "LOAD REPORT" not in text
    assert not (tmp_path / "run" / "final").exists()


def test_every_command_that_reads_weights_refuses_them(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_run(tmp_path, base)
    assert said(capsys, "train", path)[0] == 0
    final = tmp_path / "run" / "final"
    edit_weights(final, without_tower)
    for command in (
        ("eval", path),
        ("chat", final),
        ("export", final, "--to", tmp_path / "out"),
        ("plan", path, "--dry-run-worst", f"model.path={final}"),
    ):
        code, text = said(capsys, *command)
        assert code == 1, command
        assert "do not hold" in text, text
        assert "model.visual" in text


def test_tensors_that_are_not_read_are_said(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    edit_weights(base, lambda tensors: {**tensors, "extra.weight": torch.zeros(2)})
    code, _ = said(capsys, "train", write_run(tmp_path, base))
    assert code == 0
    assert (
        f"{base}: 1 tensor (extra.weight) of its files are not part of the model and were not read" in caplog.messages
    )


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"load_in_4bit": True}, "bitsandbytes"),
    ],
)
def test_a_quantised_base_is_refused_before_data_is_read(
    small_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], config: dict[str, Any], method: str
) -> None:
    base = Path(shutil.copytree(small_model_dir, tmp_path / "Qwen2-VL-2B-Instruct-AWQ"))
    edit_config(base, quantization_config=config)
    path = write_run(tmp_path, base)
    for arguments in (("train", path), ("plan", path), ("eval", path, "--checkpoint", base), ("chat", base)):
        code, text = said(capsys, *arguments)
        assert code == 1, arguments
        assert f"is quantised ({method} in its config.json)" in text
        assert "use Qwen2-VL-2B-Instruct, the plain release" in text
        assert "data.train" not in text, "it is said before the data is read"


def test_adapters_that_do_not_fit_are_refused(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path, base, **LORA)
    assert said(capsys, "train", path)[0] == 0
    final = tmp_path / "run" / "final"
    weights = final / "adapter_model.safetensors"
    tensors = load_file(weights)
    first = min(tensors)
    for changed, expected in (
        ({name: value for name, value in tensors.items() if name != first}, f"lack 1 tensor ({first})"),
        ({**tensors, "other.lora_A.weight": torch.zeros(2)}, "does not take, 1 tensor (other.lora_A.weight)"),
        ({**tensors, first: tensors[first] * torch.nan}, "hold NaN or infinity"),
    ):
        save_file(changed, weights, metadata={"format": "pt"})
        for command in (("eval", path), ("chat", final), ("export", final, "--to", tmp_path / "out")):
            code, text = said(capsys, *command)
            assert code == 1, command
            assert expected in text, text


@pytest.mark.parametrize("model", [{}, LORA], ids=["full", "lora"])
def test_a_run_folder_is_not_taken_for_its_model(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: dict[str, Any]
) -> None:
    path = write_run(tmp_path, base, **model)
    assert said(capsys, "train", path)[0] == 0
    run = tmp_path / "run"
    for command in (
        ("train", path, f"model.path={run}", f"output={tmp_path / 'next'}"),
        ("eval", path, "--checkpoint", run),
        ("chat", run),
        ("export", run, "--to", tmp_path / "out"),
    ):
        code, text = said(capsys, *command)
        assert code == 1, command
        assert f"did you mean {run / 'final'}?" in text, text
    code, text = said(capsys, "train", path, f"model.path={tmp_path / 'bass'}", f"output={tmp_path / 'next'}")
    assert (code, f"did you mean {base}?" in text) == (1, True)


def test_a_folder_of_adapters_is_not_taken_for_a_model(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_run(tmp_path, base, **LORA)
    assert said(capsys, "train", path)[0] == 0
    final = tmp_path / "run" / "final"
    code, text = said(capsys, "train", path, f"model.path={final}", f"output={tmp_path / 'next'}")
    assert code == 1
    assert f"holds adapters, not a model. To go on training them: model.path: {base}, model.adapter: {final}" in text
    assert f"new adapters on the merged model: `triptych export {final} --to OUT`, then model.path: OUT" in text
