"""The quickstart's data asks what its images can answer, and its tiny model is a plain Qwen2-VL folder."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from triptych.quickstart.dataset import DatasetFiles, write_base_dataset, write_dataset
from triptych.quickstart.scans import HELD_OUT, draw, load_scans, split_scans

Record = dict[str, object]

LABELS = "ABCDE"


@pytest.fixture(scope="module", autouse=True)
def few_scans() -> Iterator[None]:
    """A part of the scans, because drawing them all takes seconds."""
    train, held_out = split_scans()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("triptych.quickstart.dataset.split_scans", lambda: (train[:60], held_out[:50]))
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> DatasetFiles:
    return write_dataset(tmp_path_factory.mktemp("data"), train_samples=160, test_samples=80, seed=3)


@pytest.fixture(scope="module")
def records(files: DatasetFiles) -> list[Record]:
    return [record for path in (files.train, files.test) for record in json.loads(path.read_text("utf-8"))]


def _scan(image: str) -> int:
    return int(Path(image).stem.split("_")[0])


def _digits(record: Record) -> list[int]:
    return [load_scans()[_scan(image)].digit for image in record["images"]]


def _turns(record: Record) -> list[tuple[str, str]]:
    texts = [turn["value"] for turn in record["conversations"]]
    return list(zip(texts[::2], texts[1::2], strict=True))


def _of_task(records: list[Record], task: str) -> list[Record]:
    found = [record for record in records if record["task"] == task]
    assert found
    return found


def _halves(answer: str) -> tuple[list[int], str]:
    """The digits that an answer lists, and its conclusion."""
    listed, conclusion = re.split("[:：]", answer.rstrip(".。"))
    return [int(digit) for digit in re.findall(r"\d", listed)], conclusion.strip()


def test_the_sheet_holds_the_scans_that_scikit_learn_ships() -> None:
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    scans = load_scans()
    assert [scan.digit for scan in scans] == digits.target.tolist()
    assert np.array_equal(np.stack([scan.levels for scan in scans]), digits.images)


def test_no_scan_is_both_trained_on_and_held_out(files: DatasetFiles) -> None:
    train, held_out = ({scan.number for scan in part} for part in split_scans())
    assert len(held_out) == HELD_OUT
    assert train.isdisjoint(held_out)
    assert len(train | held_out) == len(load_scans())
    for path, allowed in ((files.train, train), (files.test, held_out)):
        images = [image for record in json.loads(path.read_text("utf-8")) for image in record["images"]]
        assert {_scan(image) for image in images} <= allowed


def test_the_base_is_tested_on_images_split_by_the_same_scans(tmp_path: Path) -> None:
    files = write_base_dataset(tmp_path, train_samples=0, test_samples=20, seed=3)
    held_out = {scan.number for scan in split_scans()[1]}
    for record in json.loads(files.test.read_text("utf-8")):
        assert record["task"] == "name"
        assert _scan(record["images"][0]) in held_out
        assert _turns(record)[0][1] == str(_digits(record)[0])


def test_the_base_is_trained_on_one_image_or_none(tmp_path: Path) -> None:
    files = write_base_dataset(tmp_path, train_samples=60, test_samples=0, seed=3)
    records = json.loads(files.train.read_text("utf-8"))
    assert {len(record["images"]) for record in records} == {0, 1}
    held_out = {scan.number for scan in split_scans()[1]}
    assert held_out.isdisjoint(_scan(image) for record in records for image in record["images"])


def test_a_seed_gives_the_same_files_and_another_seed_others(files: DatasetFiles, tmp_path: Path) -> None:
    again = write_dataset(tmp_path / "again", train_samples=160, test_samples=80, seed=3)
    assert again.train.read_bytes() == files.train.read_bytes()
    for image in sorted((files.folder / "images" / "test").iterdir())[:50]:
        assert image.read_bytes() == (again.folder / "images" / "test" / image.name).read_bytes()
    other = write_dataset(tmp_path / "other", train_samples=160, test_samples=80, seed=4)
    assert other.train.read_bytes() != files.train.read_bytes()


def test_every_mark_has_a_image_and_every_record_the_documented_shape(
    files: DatasetFiles, records: list[Record]
) -> None:
    for record in records:
        assert set(record) == {"id", "task", "conversations", "images"}
        assert [turn["from"] for turn in record["conversations"]] == ["human", "gpt"] * len(_turns(record))
        assert sum(question.count("<image>") for question, _ in _turns(record)) == len(record["images"])
        assert 1 <= len(record["images"]) <= 5
        for image in record["images"]:
            assert not Path(image).is_absolute()
            assert (files.folder / image).is_file()
    assert len({record["id"] for record in records}) == len(records)


def test_every_task_comes_in_both_languages_and_in_one_to_five_images(records: list[Record]) -> None:
    languages = defaultdict(set)
    for record in records:
        languages[record["task"]].add(bool(re.search("[一-鿿]", record["conversations"][0]["value"])))
    assert set(languages) == {"compare", "views", "series", "interleaved", "name"}
    assert all(found == {True, False} for found in languages.values())
    assert {len(record["images"]) for record in records} == {1, 2, 3, 4, 5}


def test_the_test_asks_for_the_four_tasks_in_equal_shares(files: DatasetFiles) -> None:
    tasks = Counter(record["task"] for record in json.loads(files.test.read_text("utf-8")))
    assert tasks == {"compare": 20, "views": 20, "series": 20, "interleaved": 20}


def test_the_packaged_base_is_a_small_model_folder_and_the_run_file_is_known(tmp_path: Path) -> None:
    from triptych.family.family import read_model_files
    from triptych.quickstart.run import write_files
    from triptych.run.reporter import LogReporter
    from triptych.run.run_file import load

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("triptych.quickstart.run.TRAIN_SAMPLES", 9)
        patch.setattr("triptych.quickstart.run.TEST_SAMPLES", 4)
        settings = load(write_files(tmp_path / "out", LogReporter()))
    assert sum(path.stat().st_size for path in Path(settings.model.path).iterdir()) <= 4_000_000
    assert read_model_files(settings.model.path).family.name == "Qwen2-VL"
    assert all(Path(str(source.path)).exists() for source in (*settings.data.train, *settings.data.eval))


def test_images_are_png_and_jpeg_of_varied_size_and_colour(files: DatasetFiles) -> None:
    formats, sizes, corners = set(), set(), set()
    for path in sorted((files.folder / "images" / "test").iterdir()):
        with Image.open(path) as picture:
            formats.add(picture.format)
            sizes.add(picture.size)
            corners.add(picture.convert("RGB").getpixel((0, 0)))
    assert formats == {"PNG", "JPEG"}
    assert {side for size in sizes for side in size} == set(range(56, 85))
    assert len(corners) > 50


def test_ink_is_darker_than_paper() -> None:
    rng = Random(0)
    for scan in load_scans()[:50]:
        grey = np.asarray(draw(scan, rng).convert("L"))
        assert int(grey.max()) - int(grey.min()) > 60


def test_a_comparison_reads_both_digits_and_names_the_larger(records: list[Record]) -> None:
    for record in _of_task(records, "compare"):
        first, second = _digits(record)
        listed, conclusion = _halves(_turns(record)[0][1])
        assert listed == [first, second]
        named = re.findall("[AB]", conclusion)
        assert named == ([] if first == second else ["A"] if first > second else ["B"])


def test_views_are_different_images_of_one_scan(records: list[Record]) -> None:
    for record in _of_task(records, "views"):
        assert len({_scan(image) for image in record["images"]}) == 1
        assert len(set(record["images"])) == len(record["images"])
        assert int(re.findall(r"\d", _turns(record)[0][1])[-1]) == _digits(record)[0]


def test_a_series_rises_or_falls_or_goes_on_as_the_answer_says(records: list[Record]) -> None:
    for record in _of_task(records, "series"):
        digits = _digits(record)
        listed, conclusion = _halves(_turns(record)[0][1])
        assert listed == digits
        if following := re.findall(r"\d", conclusion):
            assert {b - a for a, b in pairwise(digits)} == {digits[1] - digits[0]}
            assert int(following[-1]) == 2 * digits[-1] - digits[-2]
        else:
            rises = conclusion in ("they rise", "变大")
            assert rises or conclusion in ("they fall", "变小")
            assert digits == sorted(digits, reverse=not rises)


def test_interleaved_answers_name_the_image_that_was_asked_for(records: list[Record]) -> None:
    for record in _of_task(records, "interleaved"):
        digits = _digits(record)
        for position, (question, answer) in enumerate(_turns(record)):
            asked = re.findall(f"[{LABELS}]", question)[-1]
            conclusion = _halves(answer)[1] if position == 0 else answer
            assert re.findall(rf"[{LABELS}]|\d", conclusion) == [asked, str(digits[LABELS.index(asked)])]
        assert _halves(_turns(record)[0][1])[0] == digits


def test_the_tiny_model_is_a_small_plain_folder_that_transformers_loads(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    from triptych.quickstart.tiny import (
        SPECIAL_TOKENS,
        make_tiny_model,
        make_tiny_tokenizer,
        write_tiny_model,
    )

    texts = ["Which digit is larger?", "哪个数字更大？"] * 20
    write_tiny_model(tmp_path, texts, seed=1)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 4_000_000
    assert {"config.json", "preprocessor_config.json", "generation_config.json"} <= {p.name for p in tmp_path.iterdir()}

    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.model_type == "qwen2_vl"
    assert tokenizer.convert_ids_to_tokens(config.image_token_id) == "<|image_pad|>"
    for token in SPECIAL_TOKENS:
        assert tokenizer(token)["input_ids"] == [tokenizer.convert_tokens_to_ids(token)]
    for text in ("You are a helpful assistant.", "图1里是什么？", "any text: naïve ⅓ 🙂\n"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text

    same, other = (make_tiny_model(make_tiny_tokenizer(texts), seed) for seed in (1, 2))
    assert 500_000 < same.num_parameters() < 1_200_000
    assert not same.lm_head.weight.equal(other.lm_head.weight)
