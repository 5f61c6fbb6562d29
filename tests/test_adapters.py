"""Adapters that a run starts from: they go on learning, or are merged first; and folders that are none, by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from commands import said
from recovery.results import same, weights
from triptych.model.trained import merged
from triptych.run.run_file import load

# peft 0.21 still reads the attribute that transformers 5.23 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LORA: dict[str, Any] = {"train": "lora", "freeze": ["vision"], "full": ["merger"], "lora": {"rank": 2, "alpha": 4}}


@pytest.fixture(scope="module")
def first(small_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of adapters; not to be changed."""
    folder = tmp_path_factory.mktemp("first")
    data = tiny.write_dataset(folder, 4, max_images=2)
    path = tiny.write_run(folder, small_model_dir, data, model=LORA, train={"epochs": 3})
    from triptych.api.data import Run
    from triptych.api.training import train

    train(Run(load(path)))
    return folder


def write_second(folder: Path, base: Path, first: Path, **model: Any) -> Path:
    """A run of one step, which warms up from a rate of 0: it ends with the weights that it started from."""
    data = first / "train.json"
    sources = {"eval": [{"path": str(data)}]}
    return tiny.write_run(folder, base, data, data=sources, model=model, eval={"max_new_tokens": 2})


def test_adapters_go_on_learning_from_where_they_were(
    first: Path, small_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    final = first / "run" / "final"
    path = write_second(tmp_path, small_model_dir, first, **LORA, adapter=str(final))
    assert said(capsys, "train", path)[0] == 0
    assert same(tmp_path / "run" / "final", final), "adapters and the merger, to the last bit"
    assert load(tmp_path / "run" / "final" / "run.yaml").model.adapter == str(final)
    code, _ = said(capsys, "train", path, "train.epochs=3", f"output={tmp_path / 'more'}")
    assert (code, same(tmp_path / "more" / "final", final)) == (0, False)
    for command in (("eval", path), ("export", tmp_path / "more" / "final", "--to", tmp_path / "out")):
        code, text = said(capsys, *command)
        assert code == 0, text


def test_a_second_stage_starts_from_the_merged_adapters(
    first: Path, small_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    final = first / "run" / "final"
    path = write_second(tmp_path, small_model_dir, first, train="full", freeze=["vision"], adapter=str(final))
    assert said(capsys, "train", path)[0] == 0
    start = merged(load(path).model, final, torch.float32)
    start.save_pretrained(tmp_path / "merged")
    found, wanted = weights(tmp_path / "run" / "final"), weights(tmp_path / "merged")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    code, text = said(capsys, "train", path, "train.epochs=3", f"output={tmp_path / 'more'}")
    assert code == 0, text
    code, text = said(capsys, "export", tmp_path / "more" / "final", "--to", tmp_path / "out")
    assert code == 0, "what was frozen is that of the merged adapters, not of the base: " + text


def test_a_run_is_resumed_without_the_adapters_that_it_started_from(
    first: Path, small_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = shutil.copytree(first / "run" / "final", tmp_path / "adapter")
    path = write_second(tmp_path, small_model_dir, first, **LORA, adapter=str(adapter))
    assert said(capsys, "train", path)[0] == 0
    output = tmp_path / "run"
    (output / "final").rename(tmp_path / "before")
    shutil.rmtree(adapter)
    code, text = said(capsys, "train", path, "--resume")
    assert code == 0, text
    assert same(output / "final", tmp_path / "before")


def test_a_folder_that_holds_no_adapters_is_named_with_the_one_that_is_meant(
    first: Path, small_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, final = first / "run", first / "run" / "final"
    empty = tmp_path / "empty"
    empty.mkdir()
    for adapter, expected in (
        (run, f"model.adapter: {run} is the folder of a run, not a model; did you mean {final}?"),
        (small_model_dir, f"model.adapter: {small_model_dir} holds a whole model, not adapters"),
        (run / "finale", f"model.adapter: no folder {run / 'finale'} (did you mean {final}?)"),
        (empty, f"model.adapter: {empty} holds no adapter_config.json"),
        ("user/adapters", "model.adapter: no folder"),
    ):
        code, text = said(capsys, "train", write_second(tmp_path, small_model_dir, first, **LORA, adapter=str(adapter)))
        assert (code, expected in text) == (1, True), text
        assert "data.train" not in text, "it is said before data is read"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"lora": {"rank": 4, "alpha": 4}}, "model.lora.rank is 4, and 2 in"),
        ({"lora": {"rank": 2}}, "model.lora.alpha is 32.0, and 4 in"),
        ({"lora": {"rank": 2, "alpha": 4, "rslora": True}}, "model.lora.rslora is true, and false in"),
        ({"lora": {"rank": 2, "alpha": 4, "targets": ["q_proj"]}}, "hold, and this base does not take,"),
        ({"full": []}, "(model.lora.targets, model.full)"),
    ],
)
def test_adapters_of_another_kind_are_refused_by_name(
    first: Path,
    small_model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    model: dict[str, Any],
    expected: str,
) -> None:
    path = write_second(tmp_path, small_model_dir, first, **{**LORA, **model}, adapter=str(first / "run" / "final"))
    code, text = said(capsys, "train", path)
    assert (code, expected in text) == (1, True), text


def change(**values: Any) -> Callable[[str], str]:
    return lambda text: json.dumps({**json.loads(text), **values})


DAMAGES: dict[str, tuple[Callable[[str], str], str]] = {
    "cut": (lambda text: text[: len(text) // 2], "is not valid JSON"),
    "empty": (lambda _: "", "is not valid JSON"),
    "list": (lambda _: "[]", "is not a JSON object"),
    "nothing": (lambda _: "{}", "is damaged: target_modules is None"),
    "no rank": (change(r=None), "is damaged: r is None"),
    "rank of text": (change(r="two"), "is damaged: r is 'two'"),
    "no targets": (change(target_modules=[], target_parameters=None), "is damaged: target_modules is []"),
    "other kind": (change(peft_type="IA3"), "holds adapters of the kind IA3"),
    "other rank": (change(r=3), "cannot load the adapters in"),
}


def test_a_damaged_adapter_config_is_one_sentence_in_eval_chat_and_export(
    first: Path, small_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(first / "run", tmp_path / "run")
    final = tmp_path / "run" / "final"
    path = write_second(tmp_path, small_model_dir, first, **LORA)
    whole = (final / "adapter_config.json").read_text()
    for name, (damage, expected) in DAMAGES.items():
        (final / "adapter_config.json").write_text(damage(whole))
        for command in (("eval", path), ("chat", final), ("export", final, "--to", tmp_path / "out")):
            code, text = said(capsys, *command)
            assert (code, expected in text) == (1, True), (name, command[0], text)
            assert "Traceback" not in text
        last = text.rpartition("triptych: ")[2]
        assert last.count(str(final)) >= 1, last
