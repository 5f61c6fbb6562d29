"""Model folders: what is read before any weight, and how an unusable folder is refused."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from triptych.errors import ModelError
from triptych.family.family import FAMILIES, read_model_files

SMALL_FILES = ["config.json", "tokenizer.json", "preprocessor_config.json"]


@pytest.fixture
def folder(tmp_path: Path, model_dir: Path) -> Path:
    """A model folder without weights."""
    for name in SMALL_FILES:
        shutil.copy(model_dir / name, tmp_path / name)
    return tmp_path


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_the_small_files_are_enough(folder: Path) -> None:
    files = read_model_files(str(folder))
    assert files.family is FAMILIES["qwen2_vl"]
    geometry = files.geometry
    assert (geometry.patch_size, geometry.merge_size, geometry.temporal_patch_size) == (14, 2, 2)
    assert (geometry.min_pixels, geometry.max_pixels) == (56 * 56, 28 * 28 * 1280)
    assert files.image_mean == pytest.approx((0.481, 0.458, 0.408), abs=1e-3)
    assert files.template().style.default_system == "You are a helpful assistant."


def test_pixel_limits_are_found_wherever_a_release_keeps_them(folder: Path) -> None:
    path = folder / "preprocessor_config.json"
    edit(path, lambda content: (content.pop("size"), content.update(min_pixels=1234, max_pixels=56789)))
    geometry = read_model_files(str(folder)).geometry
    assert (geometry.min_pixels, geometry.max_pixels) == (1234, 56789)
    nested = {"image_processor": json.loads(path.read_text())}
    path.unlink()
    (folder / "processor_config.json").write_text(json.dumps(nested))
    assert read_model_files(str(folder)).geometry == geometry


def test_the_text_hash_follows_its_content(folder: Path) -> None:
    before = read_model_files(str(folder)).text_hash()
    assert read_model_files(str(folder)).text_hash() == before
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + "\n")
    assert read_model_files(str(folder)).text_hash() != before


@pytest.mark.parametrize("name", SMALL_FILES)
@pytest.mark.parametrize("defect", ["missing", "cut", "bytes", "array", "folder"])
def test_a_missing_or_damaged_file_is_named(folder: Path, name: str, defect: str) -> None:
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if defect == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif defect == "bytes":
        path.write_bytes(b"\xff\xfe\0")
    elif defect == "array":
        path.write_bytes(b"[]")
    elif defect == "folder":
        path.mkdir()
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        read_model_files(str(folder)).template()


@pytest.mark.parametrize("model_type", ["llama", None, 5, ["qwen2_vl"], {}])
def test_another_family_is_refused_with_those_that_are_known(folder: Path, model_type: Any) -> None:
    edit(folder / "config.json", lambda content: content.update(model_type=model_type))
    with pytest.raises(ModelError, match=r"not supported; these are: qwen2_vl"):
        read_model_files(str(folder))


@pytest.mark.parametrize("token", ["<|im_start|>", "<|vision_start|>", "<|image_pad|>"])
def test_a_tokenizer_without_the_markup_is_refused(folder: Path, token: str) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace(token, "<|other|>"))
    with pytest.raises(ModelError, match=token.replace("|", r"\|")):
        read_model_files(str(folder)).template()


@pytest.mark.parametrize("name", ["./gone", "/gone", "~/gone", "a/b/c", "gone", "nul\0", "white space/x y", "-/-"])
def test_a_name_that_is_neither_folder_nor_hub_name_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=re.escape(repr(name)[1:-1])):
        read_model_files(name)


def test_a_hub_name_that_cannot_be_reached_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="neither a model folder nor reachable on the hub"):
        read_model_files("nobody/no-such-model")
