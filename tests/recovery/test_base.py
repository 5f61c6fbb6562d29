"""A checkpoint knows its base by its weights: another one in its place is named in every command that would use it."""

from __future__ import annotations

import io
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import tiny
from commands import said
from triptych.errors import ModelError
from triptych.family.fingerprint import BLOCK, READS, check_base, fingerprint

# peft 0.21 still reads the attribute that transformers 5.23 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

WEIGHTS = "model.safetensors"
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"train": "lora", "freeze": ["vision"], "lora": {"rank": 2}},
    "full": {"train": "full", "freeze": ["vision"]},
}


def change_one_value(base: Path) -> None:
    """Of the last tensor by its name; neither size nor names change."""
    tensors = load_file(base / WEIGHTS)
    tensors[max(tensors)].view(-1)[-1] += 1
    save_file(tensors, base / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize("method", METHODS)
def test_another_base_is_named_by_resume_eval_chat_and_export(
    small_model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    base = shutil.copytree(small_model_dir, tmp_path / "base")
    data = tiny.write_dataset(tmp_path, 4, max_images=1)
    path = tiny.write_run(
        tmp_path,
        base,
        data,
        data={"eval": [{"path": str(data)}]},
        model=METHODS[method],
        train={"epochs": 2},
        eval={"max_new_tokens": 2},
    )
    assert said(capsys, "train", path)[0] == 0
    output = tmp_path / "run"
    final = output / "final"
    change_one_value(base)
    uses = [("export", final, "--to", tmp_path / "out")]
    uses += [("eval", path), ("chat", final)] if method == "lora" else []  # a whole model needs no base to answer
    for command in uses:
        code, text = said(capsys, *command)
        assert (code, f"{base} is not the base that {final} was trained on: then" in text) == (1, True), text
    shutil.rmtree(final)
    code, text = said(capsys, "train", path, "--resume")
    assert (code, f"{base} is not the base that {output / 'checkpoint-2'} was trained on" in text) == (1, True), text
    shutil.copy(small_model_dir / WEIGHTS, base)
    assert said(capsys, "train", path, "--resume")[0] == 0
    for command in uses:
        assert said(capsys, *command)[0] == 0, command
    moved = base.rename(tmp_path / "moved")
    if method == "lora":
        assert said(capsys, "eval", path, f"model.path={moved}")[0] == 0, "the same weights elsewhere"


def test_adapters_are_not_continued_on_another_base(
    small_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tiny.write_dataset(tmp_path, 2, max_images=1)
    path = tiny.write_run(tmp_path, small_model_dir, data, model=METHODS["lora"])
    assert said(capsys, "train", path)[0] == 0
    final, other = tmp_path / "run" / "final", shutil.copytree(small_model_dir, tmp_path / "other")
    change_one_value(other)
    for train in ("lora", "full"):
        options = [
            f"model.path={other}",
            f"model.adapter={final}",
            f"model.train={train}",
            f"output={tmp_path / train}",
        ]
        code, text = said(capsys, "train", path, *options)
        assert (code, f"{other} is not the base that {final} was trained on, which was {small_model_dir}" in text) == (
            1,
            True,
        ), text


def test_what_a_fingerprint_sees(small_model_dir: Path, tmp_path: Path) -> None:
    whole = fingerprint(str(small_model_dir))
    base = shutil.copytree(small_model_dir, tmp_path / "base")
    assert fingerprint(str(base)) == whole
    tensors = load_file(base / WEIGHTS)
    half = len(tensors) // 2
    names = sorted(tensors)
    for number, part in enumerate((names[:half], names[half:])):
        save_file({name: tensors[name] for name in part}, base / f"model-{number}.safetensors", metadata={"other": "x"})
    (base / WEIGHTS).unlink()
    assert fingerprint(str(base)) == whole, "cut into other files"
    save_file({name: tensors[name].half() for name in names[half:]}, base / "model-1.safetensors")
    assert fingerprint(str(base)) != whole, "another type"
    (base / "model-1.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ModelError, match=r"model-1\.safetensors"):
        fingerprint(str(base))
    (base / "model-0.safetensors").unlink()
    (base / "model-1.safetensors").unlink()
    with pytest.raises(ModelError, match="holds no weights"):
        fingerprint(str(base))


def test_a_hundred_gigabytes_take_few_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {f"layer.{number}": 1024**2 for number in range(6000)}
    header: dict[str, Any] = {}
    end = 0
    for name, size in sizes.items():
        header[name] = {"dtype": "BF16", "shape": [size // 2], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (tmp_path / WEIGHTS).open("wb") as file:  # sparse: it takes no room
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    read: list[int] = []
    from triptych.family import fingerprint as module

    blocks = module._blocks

    def counted(*arguments: Any, **options: Any) -> Any:
        for block in blocks(*arguments, **options):
            read.append(len(block))
            yield block

    monkeypatch.setattr(module, "_blocks", counted)
    found = fingerprint(str(tmp_path))
    assert (found.tensors, found.bytes) == (6000, end)
    assert READS // 2 < len(read) <= READS
    assert max(read) == BLOCK


def test_a_checkpoint_of_before_is_taken_as_it_is(small_model_dir: Path, tmp_path: Path) -> None:
    check_base(tmp_path, str(small_model_dir))
    (tmp_path / "triptych.json").write_text('{"samples": "x"}')
    check_base(tmp_path, str(small_model_dir))
    (tmp_path / "triptych.json").write_text("[")
    with pytest.raises(ModelError, match=r"cannot read .*triptych\.json"):
        check_base(tmp_path, str(small_model_dir))
