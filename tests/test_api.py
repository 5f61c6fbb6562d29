"""The Python API gives what the commands give, prints nothing, and imports torch only for weights and pixel values."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Sequence, Value
from datasets import Image as ImageFeature
from PIL import Image

import tiny
import triptych
from triptych.errors import ConfigError, DataError


def record(count: int, seed: int = 0) -> dict[str, object]:
    values = np.random.default_rng(seed).integers(0, 256, (count, 60, 90, 3), dtype=np.uint8)
    return {
        "messages": [
            {"role": "user", "content": "<image>" * count + "Which is brighter?"},
            {"role": "assistant", "content": "The first."},
        ],
        "images": [Image.fromarray(value) for value in values],
    }


@pytest.fixture
def run_path(tmp_path: Path, model_dir: Path) -> Path:
    return tiny.write_run(tmp_path, model_dir, tiny.write_dataset(tmp_path, 6))


def test_records_with_pil_images_are_checked() -> None:
    lacking = {**record(2), "images": record(1)["images"]}
    report = triptych.check([record(1), lacking, record(3)])
    assert (report.samples, report.ok) == (3, 2)
    assert [(problem.code, problem.origin.line) for problem in report.problems] == [("marker-count", 2)]
    with pytest.raises(DataError, match="marker-count"):
        report.raise_for_problems()


def test_a_pil_image_is_encoded_as_its_file_would_be(tmp_path: Path, model_dir: Path) -> None:
    in_memory = record(2)
    images = in_memory["images"]
    assert isinstance(images, list)
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    on_disk = {**in_memory, "images": ["0.png", "1.png"]}
    one = triptych.encode(in_memory, model_dir)
    two = triptych.encode(on_disk, model_dir, media_dir=tmp_path)
    for name in ("input_ids", "labels", "position_ids", "image_grid_thw"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    np.testing.assert_array_equal(one.pixel_values(), two.pixel_values())
    assert len(one.pixel_values()) == one.image_grid_thw.prod(axis=1).sum()
    assert "Which is brighter?" in one.text()


def test_a_dataset_keeps_the_bytes_of_its_images(tmp_path: Path) -> None:
    Image.new("RGB", (90, 60), (200, 10, 10)).save(tmp_path / "a.jpg")
    messages = record(1)["messages"]
    rows = {"messages": [messages], "images": [[str(tmp_path / "a.jpg")]]}
    turn = {"role": Value("string"), "content": Value("string")}
    for images in (Sequence(ImageFeature()), Sequence(ImageFeature(decode=False))):
        dataset = Dataset.from_dict(rows, features=Features({"messages": [turn], "images": images}))
        assert triptych.check(dataset).problems == []
    assert triptych.check(triptych.Source.from_dataset(dataset)).ok == 1


def test_a_run_gives_the_samples_and_rows_that_training_takes(run_path: Path) -> None:
    run = triptych.load_run(run_path, {"train.epochs": 2})
    assert triptych.check(run).ok == 6
    samples = run.samples()
    assert len(samples) == 6
    assert [len(sample.input_ids) for sample in samples] == samples.lengths.tolist()
    assert samples[-1].origin == samples[5].origin
    planned = triptych.plan(run)
    taken = [number for row in range(planned.rows) for number in planned.row(row)]
    assert sorted(taken) == sorted([*range(6)] * 2)
    with pytest.raises(IndexError):
        samples[6]
    with pytest.raises(ConfigError, match=r"data\.eval"):
        run.samples("eval")


def test_settings_in_memory_are_a_run_file(run_path: Path) -> None:
    import yaml

    content = yaml.safe_load(run_path.read_text(encoding="utf-8"))
    assert triptych.load_run(content, {"train.epochs": 2}) == triptych.load_run(run_path, {"train.epochs": 2})
    with pytest.raises(ConfigError, match="epochs"):
        triptych.load_run(content, {"train.epoch": 2})


@pytest.mark.parametrize("data", [3, "data.json", [1, 2], [{"messages": object()}]])
def test_what_is_no_data_is_refused(data: object) -> None:
    with pytest.raises(ConfigError):
        triptych.check(data)  # type: ignore[arg-type]


def test_training_through_the_api_prints_nothing(run_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = triptych.load_run(run_path, {"train.epochs": 1})
    result = triptych.train(run)
    assert (result.final / "config.json").exists()
    assert capfd.readouterr().out == ""


def test_check_encode_and_plan_import_no_torch(run_path: Path, model_dir: Path, tmp_path: Path) -> None:
    image = tmp_path / "one.png"
    Image.new("RGB", (60, 60)).save(image)
    one = {**record(0), "images": [str(image)]}
    one["messages"] = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "!"}]
    script = f"""
import json, sys, triptych
assert triptych.check(json.loads({json.dumps(json.dumps([one]))})).ok == 1
triptych.encode(json.loads({json.dumps(json.dumps(one))}), {str(model_dir)!r})
triptych.plan(triptych.load_run({str(run_path)!r}))
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_evaluate_export_chat_and_batch(
    tmp_path: Path, small_model_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = tiny.write_dataset(tmp_path, 6)
    held_out = tiny.write_dataset(tmp_path, 3, seed=5, name="held.json")
    path = tiny.write_run(
        tmp_path, small_model_dir, data, data={"eval": [{"path": str(held_out)}]}, eval={"max_new_tokens": 3}
    )
    run = triptych.load_run(path, {"train.epochs": 1})
    final = triptych.train(run).final
    answered = triptych.evaluate(run)
    assert answered.scores["all"].samples == len(answered.predictions) == 3
    assert (answered.folder / "index.html").exists()
    with pytest.raises(ConfigError, match="no model folder"):
        triptych.evaluate(run, tmp_path / "nowhere")
    assert triptych.export(final, tmp_path / "out", samples=2).holds
    chat = triptych.load_chat(tmp_path / "out", max_new_tokens=3)
    with pytest.raises(ConfigError, match="no file"):
        chat.ask("<image>?", images=[tmp_path / "gone.png"])
    first = chat.ask("<image><image>?", images=record(2)["images"])  # type: ignore[arg-type]
    assert isinstance(first.text, str)
    row = triptych.batch(run, [0, -1])
    assert row.samples == (0, 5)
    assert row.cu_seqlens.tolist() == [0, *np.cumsum(run.samples().lengths[[0, 5]]).tolist()]
    assert capfd.readouterr().out == ""


def test_every_public_name_is_there() -> None:
    import triptych.api

    assert triptych.__all__ == triptych.api.__all__
    for name in triptych.__all__:
        assert getattr(triptych, name) is getattr(triptych.api, name)
    with pytest.raises(AttributeError, match="nothing"):
        _ = triptych.nothing
