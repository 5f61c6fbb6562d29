"""Model folders as releases of transformers write them: what they leave out of their files means the default.

The folders below ``releases`` were written by ``releases/make.py`` in environments with these releases.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tiny
from commands import said
from releases import weights
from triptych.family.family import FAMILIES, read_model_files
from triptych.family.shapes import read_shapes
from triptych.model.intact import load_whole

RELEASES = Path(__file__).parent / "releases"
FOLDERS = sorted(path.parent for path in RELEASES.glob("*/*/answer.json"))
TOKENIZER = Path(__file__).parents[1] / "src/triptych/assets/tiny_base/tokenizer.json"


def restore(release: Path, folder: Path) -> tuple[Path, torch.Tensor]:
    """The folder as the release wrote it, and its answer."""
    shutil.copytree(release, folder, ignore=shutil.ignore_patterns("answer.json"))
    shutil.copy(TOKENIZER, folder)
    shapes, logits = weights.answer(release)
    weights.write(folder, shapes)
    return folder, logits


def write_run(folder: Path, model: Path, **groups: Any) -> Path:
    data = tiny.write_dataset(folder, 2, max_images=1)
    limits = {"max_pixels": 84 * 84, "eval": [{"path": str(data)}]}
    train = {"epochs": 3, "learning_rate": 1e-3}
    return tiny.write_run(folder, model, data, data=limits, eval={"max_new_tokens": 2}, train=train, **groups)


def named(path: Path) -> str:
    return f"{path.parent.name}-{path.name}"


@pytest.mark.parametrize("release", FOLDERS, ids=named)
def test_a_folder_gives_the_logits_of_the_release_that_wrote_it(release: Path, tmp_path: Path) -> None:
    folder, logits = restore(release, tmp_path / "model")
    files = read_model_files(str(folder))
    geometry = files.geometry
    assert (geometry.patch_size, geometry.merge_size, geometry.temporal_patch_size) == (14, 2, 2)
    assert (geometry.min_pixels, geometry.max_pixels) == (56 * 56, 28 * 28 * 1280)
    model = load_whole(str(folder), dtype=torch.float32).eval()
    assert files.shapes == read_shapes(model.config.to_dict()), "as transformers reads the same file"
    with torch.no_grad():
        found = model(**weights.inputs(model)).logits[0, -len(weights.QUESTION) :, ::25]
    assert (found - logits).abs().max() < 1e-5


OLDEST = (RELEASES / "4.45.2" / "qwen2_vl", RELEASES / "4.49.0" / "qwen2_5_vl")


@pytest.mark.parametrize(
    "release",
    [path if path in OLDEST else pytest.param(path, marks=pytest.mark.slow) for path in FOLDERS],
    ids=named,
)
def test_a_folder_of_each_release_trains(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = restore(release, tmp_path / "model")
    code, text = said(capsys, "train", write_run(tmp_path, folder))
    assert code == 0, text
    assert (tmp_path / "run" / "final" / "model.safetensors").exists()


def test_both_families_of_the_issue_are_there() -> None:
    found = {(path.parent.name.rpartition(".")[0], path.name) for path in FOLDERS}
    assert {(release, "qwen2_vl") for release in ("4.45", "4.49", "4.52", "4.57", "5.0", "5.24")} <= found
    assert {(release, "qwen2_5_vl") for release in ("4.49", "4.52", "4.57", "5.0", "5.24")} <= found, "4.49 added it"


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_those_of_the_classes_of_transformers(family: str) -> None:
    config = transformers.CONFIG_MAPPING[family]()
    assert read_shapes({"model_type": family}) == read_shapes(config.to_dict())
    assert read_shapes({"model_type": family, "text_config": None, "vision_config": {"depth": None}}) == read_shapes(
        {"model_type": family}
    )


def test_every_command_takes_files_that_leave_the_defaults_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = restore(RELEASES / "5.0.0" / "qwen2_vl", tmp_path / "model")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for name in ("patch_size", "spatial_merge_size", "temporal_patch_size", "mlp_ratio", "hidden_act", "in_channels"):
        config["vision_config"].pop(name)
    path.write_text(json.dumps(config))
    # Nothing else: all limits, means and sizes are the class's.
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "Qwen2VLImageProcessor"}')
    run = write_run(tmp_path, folder)
    final, out = tmp_path / "run" / "final", tmp_path / "out"
    for command in (
        ("check", run),
        ("plan", run),
        ("train", run),
        ("eval", run),
        ("export", final, "--to", out),
        ("encode", tmp_path / "train.json", "--model", out),
    ):
        code, text = said(capsys, *command)
        assert code == 0, text
    written = json.loads((out / "preprocessor_config.json").read_text())
    assert (written["patch_size"], written["merge_size"], written["temporal_patch_size"]) == (14, 2, 2)
    assert written["size"] == {"shortest_edge": 56 * 56, "longest_edge": 84 * 84}, "the limits of the run"
    assert (written["image_mean"][0], written["image_std"][0]) == (0.48145466, 0.26862954)


def set_to(group: str, name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: (content[group] if group else content).update({name: value})


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("config.json", set_to("vision_config", "depth", "two"), "vision_config.depth is 'two', not a whole number"),
        ("config.json", set_to("vision_config", "num_heads", 0), "vision_config.num_heads is 0; it must be at least 1"),
        ("config.json", set_to("text_config", "hidden_size", 1.5), "text_config.hidden_size is 1.5, not a whole"),
        ("config.json", set_to("text_config", "layer_types", ["full_attention"]), "names 1 layers of 2"),
        ("config.json", set_to("", "vision_config", []), "vision_config is [], not a group of values"),
        ("preprocessor_config.json", set_to("", "image_mean", "0.5"), "image_mean is '0.5', not three numbers"),
        ("preprocessor_config.json", set_to("", "image_std", [1, 2]), "image_std is [1, 2], not three numbers"),
        ("preprocessor_config.json", set_to("", "max_pixels", 0), "max_pixels is 0, not a number of pixels"),
        ("preprocessor_config.json", set_to("", "do_normalize", False), "do_normalize is False, and Triptych reads"),
        ("preprocessor_config.json", set_to("", "resample", 2), "resample is 2, and Triptych reads images"),
    ],
)
def test_a_value_that_cannot_be_is_named(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    change: Callable[[dict[str, Any]], None],
    expected: str,
) -> None:
    folder, _ = restore(RELEASES / "5.0.0" / "qwen2_vl", tmp_path / "model")
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))
    code, text = said(capsys, "plan", write_run(tmp_path, folder))
    assert code == 1
    assert expected in text, text
    assert str(folder) in text
    assert "Traceback" not in text


def test_one_number_stands_for_three_colours(tmp_path: Path) -> None:
    folder, _ = restore(RELEASES / "5.0.0" / "qwen2_vl", tmp_path / "model")
    (folder / "preprocessor_config.json").write_text('{"image_mean": 0.5, "image_std": [1, 1, 1]}')
    files = read_model_files(str(folder))
    assert (files.image_mean, files.image_std) == ((0.5, 0.5, 0.5), (1.0, 1.0, 1.0))
