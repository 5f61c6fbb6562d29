"""The feature cache: a frozen tower sees each image once, and nothing but time and rounding tells."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

import families
import tiny
from test_distributed import launch
from test_train import LORA, log, losses, weights
from test_train import run as train_run
from triptych.errors import ConfigError, DataError
from triptych.family.shapes import read_shapes
from triptych.forward.batch import Batch, RowFeatures, build_batch
from triptych.forward.feature_cache import FeatureCache, FeatureWriter, image_features
from triptych.forward.isolation import choose_isolation
from triptych.forward.row_forward import RowForward
from triptych.model.loading import PixelNormalizer
from triptych.recovery.resume import STATE
from triptych.rows.feature_store import FeatureReader
from triptych.rows.row_images import KNOWN
from triptych.run.feature_forecast import Forecast, Room, decide, feature_shape, forecast
from triptych.run.prepare import Prepared, plan_training, prepare
from triptych.run.run_file import load
from triptych.terminal import Terminal
from triptych.training.train import train

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

FROZEN = {"freeze": ["vision", "merger"]}
TOLERANCE = 4 * 2**-9
"""Relative, of a gradient: bfloat16 rounds a feature by up to 2^-9 of it, and a few layers pass that on."""


def run(path: Path, *overrides: str, resume: bool = False) -> list[dict[str, Any]]:
    """Train as ``path`` says, in an output folder of its own; returns the log."""
    output = Path(load(path, overrides).output)
    if not resume:
        shutil.rmtree(output, ignore_errors=True)
    return train_run(path, *overrides, resume=resume)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test starts from an empty cache."""
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


def stored_shares(entries: list[dict[str, Any]]) -> list[float]:
    return [entry["stored_images"] for entry in entries if "stored_images" in entry]


class Rows:
    """Rows of a tiny model with a frozen tower, with and without a store."""

    def __init__(self, folder: Path, family: str) -> None:
        model_folder = tiny.write_model(folder / "model", family=family, max_pixels=96 * 96)
        data = tiny.write_dataset(folder, 8, seed=3)
        path = tiny.write_run(folder, model_folder, data, model=FROZEN)
        self.prepared: Prepared = prepare(load(path), ("train",), Terminal())
        self.corpus = self.prepared.corpora["train"]
        self.model: PreTrainedModel = AutoModelForImageTextToText.from_pretrained(model_folder)
        for parameter in self.model.model.visual.parameters():
            parameter.requires_grad_(False)
        self.shape = feature_shape(read_shapes(self.model.config.to_dict()))
        self.folder = folder / "store"
        normalizer = PixelNormalizer(self.prepared.files)
        isolation = choose_isolation(self.prepared.files.family, torch.device("cpu"))
        self.plain = RowForward(normalizer, isolation)
        self.writer = FeatureWriter(self.folder, 10**9)
        merge = self.corpus.geometry.merge_size
        cache = FeatureCache(
            self.model, normalizer, merge, torch.float32, FeatureReader(self.folder, self.shape), self.writer
        )
        self.keeping = RowForward(normalizer, isolation, features=cache)

    def row(self, indices: list[int], *, store: bool) -> Batch:
        reader = FeatureReader(self.folder, self.shape) if store else None
        return build_batch(self.corpus, indices, filler=self.prepared.encoder.template.filler(), store=reader)

    def gradients(self, forward: RowForward, row: Batch) -> dict[str, torch.Tensor]:
        self.model.zero_grad()
        forward.summed_loss(self.model, row).backward()
        return {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}


def difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """Relative difference of all gradients together."""
    assert left.keys() == right.keys()
    off = sum(float((left[name] - right[name]).square().sum()) for name in left)
    return (off / sum(float(value.square().sum()) for value in right.values())) ** 0.5


def displaced(row: Batch) -> Batch:
    """The row with every token's features at the next token."""
    assert row.features is not None
    return replace(row, features=replace(row.features, known=row.features.known.roll(1, dims=1)))


@pytest.mark.parametrize("family", families.FAMILIES)
def test_kept_features_give_the_gradients_of_the_tower_within_bfloat16(tmp_path: Path, family: str) -> None:
    rows = Rows(tmp_path, family)
    indices = list(range(len(rows.corpus)))
    expected = rows.gradients(rows.plain, rows.row(indices, store=False))
    made = rows.row(indices, store=True)
    assert made.known_images == 0
    first = rows.gradients(rows.keeping, made)
    rows.writer.close()
    read = rows.row(indices, store=True)
    assert read.known_images == len(read.image_grid_thw) > 8
    assert len(read.pixels) == 0
    again = rows.gradients(rows.keeping, read)
    assert all(torch.equal(first[name], again[name]) for name in first), "read is made, to the last bit"
    rounding = difference(first, expected)
    assert 0 < rounding < TOLERANCE
    assert difference(rows.gradients(rows.keeping, displaced(read)), expected) > 10 * rounding


@pytest.mark.parametrize("levels", [1, 3])
def test_features_are_handed_to_transformers_in_its_own_class(levels: int) -> None:
    known = torch.randn(levels, 7, 4).to(torch.bfloat16)
    handed = image_features(RowFeatures(known, (2, 5), (KNOWN, KNOWN), ()))
    assert isinstance(handed, BaseModelOutputWithPooling)
    pooled, deepstack = handed.to_tuple()
    assert [len(image) for image in pooled] == [2, 5]
    assert torch.equal(torch.stack([torch.cat(level) for level in (pooled, *deepstack)]), known)


def test_features_do_not_depend_on_the_rest_of_the_row(tmp_path: Path) -> None:
    rows = Rows(tmp_path, "qwen3_vl")
    together = rows.gradients(rows.keeping, rows.row([1, 2, 3, 4], store=True))
    rows.writer.close()
    shutil.rmtree(rows.folder)
    rows.writer.__init__(rows.folder, 10**9)
    for index in (1, 3):  # these are made alone, 2 and 4 in the row
        rows.keeping.summed_loss(rows.model, rows.row([index], store=True))
    rows.writer.close()
    mixed = rows.row([1, 2, 3, 4], store=True)
    assert 0 < mixed.known_images < len(mixed.image_grid_thw)
    apart = rows.gradients(rows.keeping, mixed)
    assert all(torch.equal(together[name], apart[name]) for name in together)


def test_an_image_that_repeats_in_a_row_is_decoded_and_made_once(tmp_path: Path) -> None:
    rows = Rows(tmp_path, "qwen2_vl")
    row = rows.row([1, 2, 1, 1], store=True)
    assert row.features is not None
    assert len(row.features.entries) == len(rows.row([1, 2], store=False).image_grid_thw)
    assert len(row.pixels) == len(rows.row([1, 2], store=False).pixels)
    loss = rows.keeping.summed_loss(rows.model, row)
    rows.writer.close()
    assert rows.writer.stored == len(row.features.entries)
    plain = rows.plain.summed_loss(rows.model, rows.row([1, 2, 1, 1], store=False))
    assert loss.item() == pytest.approx(plain.item(), rel=TOLERANCE)


def test_what_was_stored_since_the_row_was_built_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Rows(tmp_path, "qwen3_vl")
    early = rows.row([1, 2, 3], store=True)  # as a worker prefetches it
    first = rows.keeping.summed_loss(rows.model, rows.row([1, 2, 3], store=True))
    rows.writer.close()
    monkeypatch.setattr(FeatureCache, "_run_tower", None)
    assert early.known_images == 0
    assert torch.equal(rows.keeping.summed_loss(rows.model, early), first)


def test_a_sample_that_does_not_decode_leaves_nothing_of_it_in_the_row(tmp_path: Path) -> None:
    rows = Rows(tmp_path, "qwen2_vl")
    rows.keeping.summed_loss(rows.model, rows.row([2], store=True))
    rows.writer.close()
    lost = next(i for i in range(len(rows.corpus)) if i != 2 and len(rows.corpus.images(i)) > 1)
    Path(rows.corpus.images(lost)[-1].location).unlink()
    row, expected = rows.row([2, lost, 1], store=True), rows.row([2, 1], store=True)
    assert [problem.code for problem in row.problems] == ["image-missing"]
    assert row.samples == (2, 1)
    assert row.features is not None
    assert expected.features is not None
    assert row.features.entries == expected.features.entries
    assert torch.equal(row.features.known, expected.features.known)
    assert torch.equal(row.pixels, expected.pixels)


def test_a_full_store_takes_no_more_and_says_so(tmp_path: Path) -> None:
    writer = FeatureWriter(tmp_path / "store", 1000)
    for number in range(5):
        writer.submit(bytes([number]) * 16, torch.zeros(1, 2, 100, dtype=torch.bfloat16))
    writer.close()
    assert (writer.stored, writer.left_out) == (2, 3)


def test_a_disk_that_fails_stops_the_storing_and_not_the_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    rows = Rows(tmp_path, "qwen2_vl")
    rows.writer.__init__(tmp_path / "file" / "store", 10**9)
    rows.keeping.summed_loss(rows.model, rows.row([1], store=True))
    rows.writer.close()
    assert rows.writer.stored == 0
    assert rows.writer.left_out == len(rows.corpus.images(1))
    assert isinstance(rows.writer.error, OSError)


def frozen_run(folder: Path, model_folder: Path, /, **settings: Any) -> Path:
    """Two epochs over 12 samples, the tower frozen, with held-out samples."""
    data = tiny.write_dataset(folder, 12, seed=2)
    held_out = tiny.write_dataset(folder, 3, seed=8, name="held.json")
    merged: dict[str, Any] = {
        "model": FROZEN,
        "data": {"eval": [{"path": str(held_out)}]},
        "batch": {"samples": 2},
        "train": {"epochs": 2, "save_every": 4, "keep_checkpoints": None},
    }
    for group, values in settings.items():
        merged[group] = {**merged[group], **values}
    return tiny.write_run(folder, model_folder, data, **merged)


@pytest.mark.parametrize("model", [FROZEN, LORA], ids=["full", "lora"])
def test_a_run_with_the_cache_is_the_run_without_it(
    small_model_dir: Path, tmp_path: Path, model: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = frozen_run(tmp_path, small_model_dir, model=model)
    plain = run(path, "train.feature_cache=off", f"output={tmp_path / 'plain'}")
    assert not (tmp_path / "cache" / "features").exists()
    keeping = run(path, f"output={tmp_path / 'keeping'}")
    assert "images, each used 2.0 times" in capsys.readouterr().err
    assert losses(keeping) == pytest.approx(losses(plain), rel=TOLERANCE)
    assert losses(keeping) != losses(plain), "features are rounded"
    evaluated = [[entry["eval_loss"] for entry in entries if "eval_loss" in entry] for entries in (plain, keeping)]
    assert evaluated[1] == pytest.approx(evaluated[0], rel=TOLERANCE)
    assert stored_shares(keeping)[0] == 0
    assert not stored_shares(plain)
    assert all(entry["images_per_second"] > 0 for entry in keeping if entry.get("stored_images"))
    assert all(0 <= entry["data_wait"] <= 1 for entry in keeping if "data_wait" in entry)
    again = run(path, f"output={tmp_path / 'again'}")
    assert set(stored_shares(again)) == {1.0}
    assert losses(again) == losses(keeping)


def test_what_is_stored_needs_neither_the_file_s_pixels_nor_the_tower(
    small_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = frozen_run(tmp_path, small_model_dir)
    first = run(path, f"output={tmp_path / 'first'}")
    for picture in (tmp_path / "images").iterdir():  # same size, same time: for all caches the same file
        status = picture.stat()
        picture.write_bytes(bytes(status.st_size))
        os.utime(picture, ns=(status.st_atime_ns, status.st_mtime_ns))
    monkeypatch.setattr(FeatureCache, "_run_tower", None)
    again = run(path, f"output={tmp_path / 'again'}")
    assert losses(again) == losses(first)
    assert set(stored_shares(again)) == {1.0}
    assert [entry.get("eval_loss") for entry in again] == [entry.get("eval_loss") for entry in first]


@pytest.mark.parametrize("state", ["warm", "cold"])
@pytest.mark.parametrize(("workers", "model"), [(0, FROZEN), (2, FROZEN), (0, LORA)], ids=["full-0", "full-2", "lora"])
def test_stopped_and_resumed_is_never_stopped(
    small_model_dir: Path, tmp_path: Path, own_cache: Path, workers: int, model: dict[str, Any], state: str
) -> None:
    path = frozen_run(tmp_path, small_model_dir, model=model, data={"workers": workers})
    whole = run(path, f"output={tmp_path / 'whole'}")
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    for later in ("checkpoint-8", "checkpoint-12", "final"):  # as if killed in the second epoch's first rows
        shutil.rmtree(tmp_path / "stopped" / later)
    if state == "cold":
        shutil.rmtree(own_cache)
    resumed = run(path, f"output={tmp_path / 'stopped'}", resume=True)
    assert losses(resumed) == losses(whole), "float equality, step by step"
    left, right = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[float]]:
    """Runs with an empty cache of its own: the answer that no stale entry can touch."""

    def run_elsewhere(path: Path, *overrides: str) -> list[float]:
        with monkeypatch.context() as patched:
            patched.setenv("TRIPTYCH_CACHE", str(tmp_path / "elsewhere"))
            return losses(run(path, f"output={tmp_path / 'elsewhere-run'}", *overrides))

    return run_elsewhere


def test_a_changed_image_is_made_anew(
    small_model_dir: Path, tmp_path: Path, elsewhere: Callable[..., list[float]]
) -> None:
    path = frozen_run(tmp_path, small_model_dir)
    before = losses(run(path))
    picture = sorted((tmp_path / "images").glob("train-*"))[0]
    with Image.open(picture) as image:
        height, width = image.height, image.width
    tiny.write_image(picture, height, width, seed=99)
    after = run(path)
    assert losses(after) != before
    assert losses(after) == elsewhere(path)
    assert min(stored_shares(after)[:6]) < 1
    assert max(stored_shares(after)[:6]) == 1, "the other images were not made again"


def test_other_weights_are_another_tower(
    tmp_path: Path, own_cache: Path, elsewhere: Callable[..., list[float]]
) -> None:
    models = [tiny.write_model(tmp_path / f"model-{seed}", seed=seed, max_pixels=84 * 84) for seed in (0, 1)]
    path = frozen_run(tmp_path, models[0])
    run(path)
    other = run(path, f"model.path={models[1]}")
    assert stored_shares(other)[0] == 0
    assert losses(other) == elsewhere(path, f"model.path={models[1]}")
    assert len(list(own_cache.iterdir())) == 2


def test_language_weights_and_adapters_leave_the_store_as_it_is(
    small_model_dir: Path, tmp_path: Path, own_cache: Path
) -> None:
    path = frozen_run(tmp_path, small_model_dir)
    run(path)
    continued = run(path, f"model.path={tmp_path / 'run' / 'final'}", f"output={tmp_path / 'continued'}")
    assert set(stored_shares(continued)) == {1.0}
    adapted = run(path, "model.train=lora", f"output={tmp_path / 'adapted'}")
    assert set(stored_shares(adapted)) == {1.0}
    assert len(list(own_cache.iterdir())) == 1


def test_another_pixel_limit_is_another_entry(
    small_model_dir: Path, tmp_path: Path, elsewhere: Callable[..., list[float]]
) -> None:
    path = frozen_run(tmp_path, small_model_dir)
    run(path)
    smaller = run(path, "data.max_pixels=3200", "data.min_pixels=784")
    assert stored_shares(smaller)[0] < 1
    assert losses(smaller) == elsewhere(path, "data.max_pixels=3200", "data.min_pixels=784")


@pytest.mark.parametrize("suffix", ["features", "entries"])
def test_a_damaged_store_is_made_anew_and_never_wrong(
    small_model_dir: Path, tmp_path: Path, own_cache: Path, suffix: str
) -> None:
    path = frozen_run(tmp_path, small_model_dir)
    first = losses(run(path))
    (file,) = own_cache.glob(f"*/*.{suffix}")
    content = bytearray(file.read_bytes())
    for place in range(0, len(content), 50):
        content[place] ^= 255
    file.write_bytes(bytes(content))
    fixed = run(path)
    assert losses(fixed) == first
    assert stored_shares(fixed)[0] < 1
    assert set(stored_shares(run(path))) == {1.0}


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_of_text_alone_and_rows_with_images_go_together(
    small_model_dir: Path, tmp_path: Path, workers: int
) -> None:
    data = tiny.write_dataset(tmp_path, 8, max_images=1)
    settings = {"model": FROZEN, "batch": {"samples": 1}, "train": {"epochs": 2}, "data": {"workers": workers}}
    path = tiny.write_run(tmp_path, small_model_dir, data, **settings)
    keeping = run(path)
    shares = [entry["images_per_second"] > 0 for entry in keeping if "loss" in entry]
    assert True in shares
    assert False in shares
    assert losses(keeping) == pytest.approx(losses(run(path, "train.feature_cache=off")), rel=TOLERANCE)


def test_two_ranks_are_one(small_model_dir: Path, tmp_path: Path, own_cache: Path) -> None:
    path = frozen_run(tmp_path, small_model_dir, train={"rows_per_step": 2, "save_every": "epoch"})
    one = run(path, f"output={tmp_path / 'one'}")
    shutil.rmtree(own_cache)
    two = launch(path, 2, f"output={tmp_path / 'two'}")
    assert two.returncode == 0, two.stderr
    assert losses(log(tmp_path / "two")) == pytest.approx(losses(one), rel=1e-5)
    assert len(list(own_cache.glob("*/*.entries"))) == 2, "each rank writes files of its own"
    assert two.stderr.count("each used 2.0 times") == 1, "one rank speaks for the run"
    again = run(path, f"output={tmp_path / 'again'}")
    assert losses(again) == losses(one)
    assert set(stored_shares(again)) == {1.0}, "one rank reads what two have made"


def said(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("feature cache")][:1]
    return line


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("train.feature_cache=off",), "as set"),
        (("train.epochs=1",), "every image is used once"),
        (("model.freeze=[]",), "the vision tower and the merger learn"),
        (("model.freeze=[vision]",), "the merger learns"),
        (("model.train=lora", "model.freeze=[language]"), "the vision tower and the merger learn"),
        (("train.feature_cache_gb=1.0e-5",), "over train.feature_cache_gb 1e-05"),
    ],
)
def test_where_the_cache_stays_off_the_run_says_why(
    small_model_dir: Path,
    tmp_path: Path,
    own_cache: Path,
    capsys: pytest.CaptureFixture[str],
    overrides: tuple[str, ...],
    reason: str,
) -> None:
    path = frozen_run(tmp_path, small_model_dir, train={"eval_every": 100})
    run(path, *overrides)
    line = said(capsys)
    assert line.startswith("feature cache off: ")
    assert reason in line
    assert not list(own_cache.glob("*/*.features"))


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("model.freeze=[]",), "the vision tower and the merger learn"),
        (("train.feature_cache_gb=1.0e-5",), "over train.feature_cache_gb 1e-05"),
    ],
)
def test_asked_for_and_impossible_is_an_error(
    small_model_dir: Path, tmp_path: Path, overrides: tuple[str, ...], reason: str
) -> None:
    path = frozen_run(tmp_path, small_model_dir)
    with pytest.raises(ConfigError, match=reason):
        run(path, "train.feature_cache=on", *overrides)


def test_asked_for_it_is_on_even_where_every_image_is_used_once(
    small_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = frozen_run(tmp_path, small_model_dir, train={"eval_every": 100})
    run(path, "train.feature_cache=on", "train.epochs=1")
    assert "each used 1.0 times" in said(capsys)
    run(path, "train.epochs=1")  # now it pays: everything is there
    assert "stored already" in said(capsys)
    assert set(stored_shares(log(tmp_path / "run"))) == {1.0}


FORECAST = Forecast(images=100, uses=200, size=10**9, missing=100, missing_size=10**9)
ROOM = Room(held=0, limit=50 * 10**9, free=100 * 10**9)


@pytest.mark.parametrize(
    ("setting", "forecast", "room", "resumed", "on"),
    [
        ("auto", FORECAST, ROOM, None, True),
        ("auto", replace(FORECAST, uses=105), ROOM, None, False),
        ("auto", replace(FORECAST, uses=100, missing=60), ROOM, None, True),
        ("auto", FORECAST, replace(ROOM, held=49 * 10**9 + 1), None, False),
        ("auto", FORECAST, replace(ROOM, free=10**9), None, False),
        ("auto", replace(FORECAST, missing=10, missing_size=10**8), replace(ROOM, free=10**9), None, True),
        ("auto", FORECAST, replace(ROOM, free=0), True, True),
        ("auto", FORECAST, ROOM, False, False),
        ("on", replace(FORECAST, uses=100), ROOM, None, True),
        ("on", FORECAST, ROOM, False, True),
        ("on", FORECAST, replace(ROOM, free=0), True, True),
        ("on", Forecast(), ROOM, None, False),
    ],
)
def test_decisions(
    tmp_path: Path, setting: str, forecast: Forecast, room: Room, resumed: bool | None, on: bool
) -> None:
    settings = load(tiny.write_run(tmp_path, tmp_path, tmp_path), (f"train.feature_cache={setting}",)).train
    assert settings.feature_cache == setting
    decision = decide(settings, forecast, room, resumed=resumed)
    assert decision.on == on
    assert decision.line.startswith("feature cache: 1.0 GB for 100 images, each used" if on else "feature cache off: ")


def test_asked_for_without_room_is_an_error(tmp_path: Path) -> None:
    settings = load(tiny.write_run(tmp_path, tmp_path, tmp_path), ("train.feature_cache=on",)).train
    with pytest.raises(ConfigError, match=r"would take 1\.0 GB beside 49\.5 GB already there, over"):
        decide(settings, FORECAST, replace(ROOM, held=49_500_000_000))
    with pytest.raises(ConfigError, match=r"has 1\.0 GB free"):
        decide(settings, FORECAST, replace(ROOM, free=10**9))


def test_the_forecast_is_what_is_written(small_model_dir: Path, tmp_path: Path, own_cache: Path) -> None:
    # A budget that makes some samples show smaller copies of images that others show whole.
    data = tiny.write_dataset(tmp_path, 6, seed=5)
    records = json.loads(data.read_text())
    images = [name for record in records for name in record["images"]]
    records += [tiny.record(images[:6], "<image>" * 6 + "All?", "yes"), tiny.record(images[:1], "<image>One?", "no")]
    data.write_text(json.dumps(records))
    copy = tmp_path / "copy.json"
    copy.write_text(json.dumps(records[:3]))
    settings = {"model": FROZEN, "data": {"max_tokens": 80, "train": [{"path": [str(data), str(copy)]}]}}
    path = tiny.write_run(tmp_path, small_model_dir, data, train={"epochs": 2}, batch={"samples": 2}, **settings)
    loaded = load(path)
    prepared = prepare(loaded, ("train",), Terminal())
    assert prepared.reports["train"].shrunk
    planned = plan_training(loaded, prepared.corpora["train"], 1)
    model = AutoModelForImageTextToText.from_pretrained(small_model_dir)
    shape = feature_shape(read_shapes(model.config.to_dict()))
    found = forecast(loaded, {"train": planned}, prepared.corpora, shape)
    shown = [image for i in planned.samples.tolist() for image in prepared.corpora["train"].images(i)]
    assert found.uses == len(shown)
    assert found.images == len({(i.location, i.resized_height, i.resized_width) for i in shown})
    run(path)
    (file,) = own_cache.glob("*/*.features")
    assert file.stat().st_size == found.size == found.missing_size
    (folder,) = own_cache.iterdir()
    assert forecast(loaded, {"train": planned}, prepared.corpora, shape, FeatureReader(folder, shape)).missing == 0


def test_a_resumed_run_keeps_to_what_it_did(small_model_dir: Path, tmp_path: Path, own_cache: Path) -> None:
    path = frozen_run(tmp_path, small_model_dir)
    run(path)
    assert json.loads((tmp_path / "run" / "checkpoint-4" / STATE).read_text())["feature_cache"] is True
    for later in ("checkpoint-8", "checkpoint-12", "final"):
        shutil.rmtree(tmp_path / "run" / later)
    shutil.rmtree(own_cache)
    resumed = run(path, "train.feature_cache_gb=1.0e-5", resume=True)
    assert stored_shares(resumed), "still rounded, though hardly anything is stored"
    assert sum(file.stat().st_size for file in own_cache.glob("*/*.features")) <= 10_000


def test_an_image_that_is_lost_is_a_problem_even_if_its_features_are_there(
    small_model_dir: Path, tmp_path: Path
) -> None:
    path = frozen_run(tmp_path, small_model_dir)
    run(path)
    settings = load(path)
    prepared = prepare(settings, ("train", "eval"), Terminal())
    sorted((tmp_path / "images").glob("train-*"))[-1].unlink()
    with pytest.raises(DataError, match="image-missing"):
        train(settings, prepared, Terminal())


@pytest.mark.parametrize("wanted", ["auto", "on"])
def test_a_store_that_cannot_be_used_is_no_end_of_an_automatic_run(
    small_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "features").write_text("no folder")
    data = tiny.write_dataset(tmp_path, 4)
    settings = {"model": {"freeze": ["vision", "merger"]}, "train": {"feature_cache": wanted, "epochs": 2}}
    path = tiny.write_run(tmp_path, small_model_dir, data, **settings)
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    loaded = load(path)
    prepared = prepare(loaded, ("train",), Terminal())
    if wanted == "auto":
        assert train(loaded, prepared, Terminal()).is_dir()
        return
    with pytest.raises(ConfigError, match="cannot be used"):
        train(loaded, prepared, Terminal())
