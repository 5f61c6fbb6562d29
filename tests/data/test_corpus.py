"""The index on disk: gives back what was examined, is reused while nothing changes, and rebuilt when anything does."""

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from triptych.data import images
from triptych.data.corpus import Corpus, load_or_build
from triptych.data.layout import Budget
from triptych.data.records import Source
from triptych.data.samples import Census, Examiner, Reading
from triptych.family import read_model_files

SAMPLES = 9


@dataclass
class Run:
    """What decides an index."""

    source: Source
    reading: Reading
    identity: str
    folder: Path

    def load(self) -> tuple[Corpus, Census]:
        return load_or_build([self.source], self.reading, self.identity, self.folder)


@pytest.fixture
def run(tmp_path: Path, model_dir: Path) -> Run:
    data = tiny.write_dataset(tmp_path, SAMPLES - 2)
    tiny.write_picture(tmp_path / "large.png", 500, 500)
    more = [tiny.record([], "hi", "yes"), tiny.record(["large.png"], "<image>?", "yes", task="t")]
    rewrite(data, lambda records: records.extend(more))
    files = read_model_files(str(model_dir))
    reading = Reading(files.template(), files.geometry, Budget(max_tokens=200))
    return Run(Source(str(data)), reading, files.tokenizer_hash(), tmp_path / "index")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the image files that are opened from now on."""
    names: list[str] = []
    real = images.measure
    monkeypatch.setattr(images, "measure", lambda location: names.append(Path(location).name) or real(location))
    return names


def rewrite(path: Path, change: Callable[[list[Any]], None]) -> None:
    """Change the records of a data file; its size and time change with it."""
    records = json.loads(path.read_text(encoding="utf-8"))
    change(records)
    path.write_text(json.dumps(records), encoding="utf-8")


def test_the_index_gives_back_what_was_examined(run: Run) -> None:
    rewrite(Path(run.source.path), lambda records: records[4].pop("task"))
    corpus, census = run.load()
    examiner = Examiner(run.reading)
    samples = [sample for _, sample in examiner.run([run.source])]
    assert len(corpus) == len(samples) == SAMPLES
    assert {len(sample.measured) for sample in samples} >= {0, 1, 2}, "one without a picture among them"
    assert any(sample.fitted.shrunk for sample in samples)
    for index, sample in enumerate(samples):
        encoded, layout = corpus.encoded(index), corpus.layout(index)
        assert np.array_equal(encoded.ids, sample.fitted.encoded.ids)
        assert np.array_equal(encoded.supervised, sample.fitted.encoded.supervised)
        assert np.array_equal(encoded.slots, sample.fitted.encoded.slots)
        expected = sample.layout(run.reading.geometry)
        for name in ("input_ids", "supervised", "position_ids", "grids"):
            assert np.array_equal(getattr(layout, name), getattr(expected, name))
            assert getattr(layout, name).dtype == getattr(expected, name).dtype
        assert layout.origin == corpus.origin(index) == sample.conversation.origin
        assert corpus.images(index) == [
            replace(image, media_root=os.path.abspath(image.media_root)) for image in sample.images()
        ]
        assert corpus.task(index) == sample.conversation.task
        assert corpus.lengths.tokens[index] == len(layout.input_ids)
        assert corpus.lengths.patches[index] == layout.grids.prod(axis=1).sum()
        assert corpus.supervised[index] == layout.supervised.sum()
    assert census == examiner.census
    assert corpus.geometry == run.reading.geometry


def test_the_index_is_reused_without_opening_an_image_or_a_record(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first, census = run.load()

    def refuse(*_: Any) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr(images, "measure", refuse)
    monkeypatch.setattr(Examiner, "run", refuse)
    again, same_census = run.load()
    assert same_census == census
    assert np.array_equal(again.lengths.tokens, first.lengths.tokens)
    assert len(list(run.folder.glob("*.arrow"))) == 1


def change_data(run: Run) -> None:
    rewrite(Path(run.source.path), lambda records: records.pop())


def touch_data(run: Run) -> None:
    os.utime(run.source.path, ns=(1, 1))


def change_image(run: Run) -> None:
    corpus, _ = run.load()
    found = next(image for index in range(SAMPLES) for image in corpus.images(index))
    tiny.write_picture(Path(found.media_root) / found.ref.source, 300, 200)


def touch_image(run: Run) -> None:
    corpus, _ = run.load()
    found = next(image for index in range(SAMPLES) for image in corpus.images(index))
    os.utime(Path(found.media_root) / found.ref.source, ns=(1, 1))


def limit_image(run: Run) -> None:
    run.reading = replace(run.reading, geometry=run.reading.geometry.limit(max_pixels=100 * 100))


def limit_sample(run: Run) -> None:
    run.reading = replace(run.reading, budget=Budget(max_tokens=199))


def share_images(run: Run) -> None:
    run.reading = replace(run.reading, budget=replace(run.reading.budget, image_tokens=30))


def change_rule(run: Run) -> None:
    run.reading = replace(run.reading, budget=replace(run.reading.budget, too_long="drop"))


def change_tokenizer(run: Run) -> None:
    run.identity = "another tokenizer"


def confine(run: Run) -> None:
    run.source = replace(run.source, confine=True)


def rename_columns(run: Run) -> None:
    run.source = replace(run.source, columns={"system": "preface"})


def add_file(run: Run) -> None:
    more = tiny.write_dataset(Path(run.source.path).parent, 2, seed=1, name="more.json")
    run.source = replace(run.source, path=(run.source.path, str(more)))


CHANGES = [change_data, touch_data, change_image, touch_image, limit_image, limit_sample, share_images, change_rule]
CHANGES += [change_tokenizer, confine, rename_columns, add_file]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_any_change_rebuilds_the_index(run: Run, measured: list[str], change: Callable[[Run], None]) -> None:
    run.load()
    before = len(measured)
    change(run)
    corpus, census = run.load()
    assert len(measured) > before
    fresh = replace(run, folder=run.folder.parent / "fresh").load()
    assert census == fresh[1]
    assert np.array_equal(corpus.lengths.tokens, fresh[0].lengths.tokens)


def test_a_deleted_image_rebuilds_the_index_and_is_reported(run: Run) -> None:
    corpus, _ = run.load()
    index, image = next((i, image) for i in range(SAMPLES) for image in corpus.images(i))
    (Path(image.media_root) / image.ref.source).unlink()
    again, census = run.load()
    assert [(problem.code, problem.origin.line) for problem in census.problems] == [("image-missing", index + 1)]
    assert len(again) == SAMPLES - 1


@pytest.mark.parametrize("defect", ["missing", "text"])
def test_a_mended_image_is_noticed_though_the_data_file_is_the_same(run: Run, measured: list[str], defect: str) -> None:
    folder = Path(run.source.path).parent
    rewrite(Path(run.source.path), lambda records: records.append(tiny.record(["new.png"], "<image>?", "yes")))
    if defect == "text":
        (folder / "new.png").write_text("not a picture")
    _, census = run.load()
    assert len(census.problems) == 1
    opened = len(measured)
    assert run.load()[1] == census
    assert len(measured) == opened, "as long as the file stays as it is, nothing is examined again"
    tiny.write_picture(folder / "new.png", 60, 60)
    corpus, census = run.load()
    assert (census.problems, len(corpus)) == ([], SAMPLES + 1)


def test_problems_and_dropped_samples_survive_a_reload(run: Run) -> None:
    def spoil(records: list[Any]) -> None:
        records[1]["conversations"][0]["from"] = "nobody"
        records[2]["conversations"][0]["value"] += "word " * 2000
        records[3] = 5

    rewrite(Path(run.source.path), spoil)
    run.reading = replace(run.reading, budget=Budget(max_tokens=1500, too_long="drop"))
    corpus, census = run.load()
    assert [(problem.code, problem.origin.line) for problem in census.problems] == [("bad-shape", 2), ("bad-shape", 4)]
    assert [(problem.code, problem.origin.line) for problem in census.dropped] == [("too-long", 3)]
    assert (census.samples, census.ok, len(corpus)) == (SAMPLES, SAMPLES - 3, SAMPLES - 3)
    assert run.load()[1] == census


def test_a_corpus_travels_to_a_worker_as_its_path(run: Run) -> None:
    corpus, _ = run.load()
    sent = pickle.dumps(corpus)
    assert len(sent) < 1000
    received = pickle.loads(sent)
    assert np.array_equal(received.lengths.patches, corpus.lengths.patches)
    assert np.array_equal(received.layout(3).position_ids, corpus.layout(3).position_ids)


def test_an_interrupted_build_leaves_nothing_that_is_taken_for_an_index(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("triptych.data.corpus._columns", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run.load()
    assert list(run.folder.iterdir()) == []
    # What a killed process leaves.
    (run.folder / ".building-xyz.arrow").write_bytes(b"ARROW1")
    (run.folder / ".building-xyz.json").write_bytes(b"{")
    corpus, _ = run.load()
    assert len(corpus) == SAMPLES
    assert len(run.load()[0]) == SAMPLES


def test_an_index_without_its_census_is_built_again(run: Run) -> None:
    run.load()
    (census,) = run.folder.glob("*.json")
    census.unlink()
    assert len(run.load()[0]) == SAMPLES
    assert census.exists()


def test_files_without_a_good_sample_give_an_empty_corpus(run: Run) -> None:
    Path(run.source.path).write_text("[1, 2]")
    corpus, census = run.load()
    assert (len(corpus), len(census.problems), len(corpus.lengths.tokens)) == (0, 2, 0)


def test_the_same_files_named_from_another_folder_share_the_index(
    run: Run, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run.load()
    opened = len(measured)
    monkeypatch.chdir(Path(run.source.path).parent)
    run.source = Source("train.json")
    corpus, _ = run.load()
    assert len(measured) == opened
    monkeypatch.chdir("/")
    assert corpus.is_current()
