"""The caches: they give back what was examined, save all work that was done, and notice every change."""

import json
import os
import pickle
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from triptych.corpus.corpus import Corpus
from triptych.corpus.examine import CheckReport, Encoder, Examiner
from triptych.corpus.loading import load_or_build
from triptych.family.family import read_model_files
from triptych.images import measure
from triptych.sources.readers import read_records
from triptych.sources.records import Record, Source
from triptych.text.conversation import parse
from triptych.text.layout import Budget, fit, lay_out

SAMPLES = 9


@dataclass
class Run:
    """What decides a corpus."""

    source: Source
    encoder: Encoder
    identity: str
    folder: Path

    def load(self) -> tuple[Corpus, CheckReport]:
        return load_or_build([self.source], replace(self.encoder, identity=self.identity), self.folder)


@pytest.fixture
def run(tmp_path: Path, model_dir: Path) -> Run:
    data = tiny.write_dataset(tmp_path, SAMPLES - 2)
    tiny.write_image(tmp_path / "large.png", 500, 500)
    more = [tiny.record([], "hi", "yes"), tiny.record(["large.png"], "<image>?", "yes", task="t")]
    rewrite(data, lambda records: records.extend(more))
    files = read_model_files(str(model_dir))
    encoder = Encoder(files.template(), files.geometry, Budget(max_tokens=200))
    return Run(Source(str(data)), encoder, files.text_hash(), tmp_path / "index")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the image files that are opened from now on."""
    names: list[str] = []
    real = measure.measure
    monkeypatch.setattr(measure, "measure", lambda location: names.append(Path(location).name) or real(location))
    return names


def rewrite(path: Path, change: Callable[[list[Any]], None]) -> None:
    """Change the records of a data file; its size and time change with it."""
    records = json.loads(path.read_text(encoding="utf-8"))
    change(records)
    path.write_text(json.dumps(records), encoding="utf-8")


@pytest.fixture
def tokenized(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of records of each shard that is read from now on."""
    counts: list[int] = []
    real = Examiner.__call__

    def count(self: Examiner, task: Any) -> Any:
        examined = real(self, task)
        counts.append(examined.records)
        return examined

    monkeypatch.setattr(Examiner, "__call__", count)
    return counts


def test_the_corpus_gives_back_what_each_record_alone_gives(run: Run) -> None:
    rewrite(Path(run.source.path), lambda records: records[4].pop("task"))
    corpus, report = run.load()
    records = list(read_records(run.source.path))
    assert len(corpus) == len(records) == SAMPLES
    folder = Path(run.source.path).parent
    geometry = run.encoder.geometry
    shrunk = 0
    for index, record in enumerate(records):
        assert isinstance(record, Record)
        conversation = parse(record, run.source)
        measured = [measure.measure(str(folder / ref.source)) for ref in conversation.images]
        sizes = [(image.height, image.width) for image in measured]
        fitted = fit(run.encoder.template.encode(conversation), sizes, geometry, run.encoder.budget)
        shrunk += fitted.shrunk
        expected = lay_out(fitted.encoded, fitted.resized, geometry, record.origin)
        encoded, layout = corpus.encoded(index), corpus.layout(index)
        assert np.array_equal(encoded.ids, fitted.encoded.ids)
        assert np.array_equal(encoded.supervised, fitted.encoded.supervised)
        assert np.array_equal(encoded.slots, fitted.encoded.slots)
        for name in ("input_ids", "supervised", "position_ids", "grids"):
            assert np.array_equal(getattr(layout, name), getattr(expected, name))
            assert getattr(layout, name).dtype == getattr(expected, name).dtype
        assert layout.origin == corpus.origin(index) == record.origin
        found = corpus.images(index)
        assert [image.name for image in found] == [ref.source for ref in conversation.images]
        assert [image.location for image in found] == [str(folder / ref.source) for ref in conversation.images]
        assert [(image.height, image.width) for image in found] == sizes
        assert [(image.resized_height, image.resized_width) for image in found] == fitted.resized
        assert corpus.task(index) == conversation.task
        assert corpus.lengths.tokens[index] == len(layout.input_ids)
        assert corpus.lengths.patches[index] == layout.grids.prod(axis=1).sum()
        assert corpus.supervised[index] == layout.supervised.sum()
        assert corpus.image_counts[index] == len(sizes)
    assert {0, 1, 2} <= set(corpus.image_counts.tolist()), "one without an image among them"
    assert report == CheckReport(samples=SAMPLES, ok=SAMPLES, shrunk=shrunk)
    assert shrunk
    assert corpus.geometry == geometry


@pytest.mark.parametrize("rule", ["shrink", "drop", "error", "cut_text"])
def test_what_is_over_a_budget_meets_its_rule(run: Run, rule: Any) -> None:
    run.encoder = replace(run.encoder, budget=Budget(max_tokens=60, too_long=rule))
    corpus, report = run.load()
    assert (corpus.lengths.tokens <= 60).all()
    assert bool(report.dropped) == (rule == "drop")
    assert report.problems if rule == "error" else report.ok
    assert bool(report.shrunk) == (rule in ("shrink", "cut_text"))
    for index in range(len(corpus)):
        layout = corpus.layout(index)
        assert len(layout.input_ids) == corpus.lengths.tokens[index]
        assert layout.supervised.sum() == corpus.supervised[index] > 0


def test_nothing_is_read_again_while_nothing_changes(run: Run, measured: list[str], tokenized: list[int]) -> None:
    first, report = run.load()
    assert (len(measured), sum(tokenized)) == (len(set(measured)), SAMPLES), "each image was measured once"
    measured.clear()
    tokenized.clear()
    again, same_report = run.load()
    assert same_report == report
    assert np.array_equal(again.lengths.tokens, first.lengths.tokens)
    assert (measured, tokenized) == ([], [])


def change_data(run: Run) -> None:
    rewrite(Path(run.source.path), lambda records: records.pop())


def touch_data(run: Run) -> None:
    os.utime(run.source.path, ns=(1, 1))


def change_image(run: Run) -> None:
    corpus, _ = run.load()
    found = next(image for index in range(SAMPLES) for image in corpus.images(index))
    tiny.write_image(Path(found.location), 300, 200)


def touch_image(run: Run) -> None:
    corpus, _ = run.load()
    found = next(image for index in range(SAMPLES) for image in corpus.images(index))
    os.utime(found.location, ns=(1, 1))


def limit_image(run: Run) -> None:
    run.encoder = replace(run.encoder, geometry=run.encoder.geometry.limit(max_pixels=100 * 100))


def limit_sample(run: Run) -> None:
    run.encoder = replace(run.encoder, budget=Budget(max_tokens=199))


def share_images(run: Run) -> None:
    run.encoder = replace(run.encoder, budget=replace(run.encoder.budget, image_tokens=30))


def change_rule(run: Run) -> None:
    run.encoder = replace(run.encoder, budget=replace(run.encoder.budget, too_long="drop"))


def change_tokenizer(run: Run) -> None:
    run.identity = "another tokenizer"


def confine(run: Run) -> None:
    run.source = replace(run.source, confine=True)


def rename_columns(run: Run) -> None:
    run.source = replace(run.source, columns={"system": "preface"})


def add_file(run: Run) -> None:
    more = tiny.write_dataset(Path(run.source.path).parent, 2, seed=1, name="more.json")
    run.source = replace(run.source, path=(run.source.path, str(more)))


# change -> whether records are read again, how many images are measured again
TEXT = {change_data: 0, touch_data: 0, change_tokenizer: 0, confine: 20, rename_columns: 0, add_file: 3}
LIMITS = {limit_image: 0, limit_sample: 0, share_images: 0, change_rule: 0}
IMAGES = {change_image: 1, touch_image: 1}


@pytest.mark.parametrize("change", [*TEXT, *LIMITS, *IMAGES], ids=lambda change: change.__name__)
def test_a_change_costs_what_depends_on_it_and_no_more(
    run: Run, measured: list[str], tokenized: list[int], change: Callable[[Run], None]
) -> None:
    run.load()
    change(run)
    measured.clear()
    tokenized.clear()
    corpus, report = run.load()
    assert bool(tokenized) == (change in TEXT)
    assert change is not add_file or tokenized == [2], "only the new file is read"
    again = {**TEXT, **LIMITS, **IMAGES}[change]
    assert len(measured) == again
    fresh = replace(run, folder=run.folder.parent / "fresh").load()
    assert report == fresh[1]
    assert np.array_equal(corpus.lengths.tokens, fresh[0].lengths.tokens)
    for index in range(len(corpus)):
        assert corpus.images(index) == fresh[0].images(index)
        assert np.array_equal(corpus.layout(index).input_ids, fresh[0].layout(index).input_ids)


def test_a_deleted_image_rebuilds_the_index_and_is_reported(run: Run) -> None:
    corpus, _ = run.load()
    index, image = next((i, image) for i in range(SAMPLES) for image in corpus.images(i))
    Path(image.location).unlink()
    again, report = run.load()
    assert [(problem.code, problem.origin.line) for problem in report.problems] == [("image-missing", index + 1)]
    assert len(again) == SAMPLES - 1


@pytest.mark.parametrize("defect", ["missing", "text"])
def test_a_mended_image_is_noticed_though_the_data_file_is_the_same(run: Run, measured: list[str], defect: str) -> None:
    folder = Path(run.source.path).parent
    rewrite(Path(run.source.path), lambda records: records.append(tiny.record(["new.png"], "<image>?", "yes")))
    if defect == "text":
        (folder / "new.png").write_text("not an image")
    _, report = run.load()
    assert len(report.problems) == 1
    opened = len(measured)
    assert run.load()[1] == report
    assert measured[opened:] == (["new.png"] if defect == "missing" else []), "a file that is there is not tried again"
    tiny.write_image(folder / "new.png", 60, 60)
    corpus, report = run.load()
    assert (report.problems, len(corpus)) == ([], SAMPLES + 1)


def test_problems_and_dropped_samples_survive_a_reload(run: Run) -> None:
    def spoil(records: list[Any]) -> None:
        records[1]["conversations"][0]["from"] = "nobody"
        records[2]["conversations"][0]["value"] += "word " * 2000
        records[3] = 5

    rewrite(Path(run.source.path), spoil)
    run.encoder = replace(run.encoder, budget=Budget(max_tokens=1500, too_long="drop"))
    corpus, report = run.load()
    assert [(problem.code, problem.origin.line) for problem in report.problems] == [("bad-shape", 2), ("bad-shape", 4)]
    assert [(problem.code, problem.origin.line) for problem in report.dropped] == [("too-long", 3)]
    assert (report.samples, report.ok, len(corpus)) == (SAMPLES, SAMPLES - 3, SAMPLES - 3)
    assert run.load()[1] == report


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
        patch.setattr("triptych.corpus.examine._columns", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run.load()
    left = [path for path in (run.folder / "index").iterdir() if path.suffix != ".lock"]
    assert left == []
    corpus, _ = run.load()
    (index,) = [path for path in (run.folder / "index").iterdir() if path.suffix != ".lock"]
    # What a killed process leaves is swept away by the next build of the same files.
    (lock,) = (run.folder / "index").glob("*.lock")
    leftover = index.rename(lock.parent / f".{lock.stem}-xyz")
    (leftover / "about.json").unlink()
    assert len(run.load()[0]) == len(corpus) == SAMPLES
    assert not leftover.exists()


def test_a_damaged_header_cache_is_set_aside_and_measured_again(run: Run, measured: list[str]) -> None:
    run.load()
    count = len(measured)
    (cache,) = run.folder.glob("headers-*.sqlite")
    cache.write_bytes(b"not a database" * 1000)
    assert len(run.load()[0]) == SAMPLES
    assert len(measured) == 2 * count
    assert len(list(run.folder.glob("*.damaged"))) == 1


def test_the_header_cache_serves_all_runs(run: Run, measured: list[str]) -> None:
    run.load()
    measured.clear()
    folder = Path(run.source.path).parent
    other = folder / "other.json"
    other.write_text(json.dumps([tiny.record(["large.png"], "<image>What?", "An image.")]), encoding="utf-8")
    corpus, _ = load_or_build([Source(str(other))], replace(run.encoder, identity="another model"), run.folder)
    assert (len(corpus), measured) == (1, [])


def test_a_corpus_without_its_census_is_counted_again(run: Run) -> None:
    _, report = run.load()
    (path,) = run.folder.glob("corpora/check-*.json")
    path.unlink()
    assert run.load()[1] == report
    assert path.exists()


def test_files_without_a_good_sample_give_an_empty_corpus(run: Run) -> None:
    Path(run.source.path).write_text("[1, 2]")
    corpus, report = run.load()
    assert (len(corpus), len(report.problems), len(corpus.lengths.tokens)) == (0, 2, 0)


def test_the_same_files_named_from_another_folder_share_everything(
    run: Run, measured: list[str], tokenized: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run.load()
    measured.clear()
    tokenized.clear()
    monkeypatch.chdir(Path(run.source.path).parent)
    run.source = Source("train.json")
    corpus, _ = run.load()
    assert (measured, tokenized) == ([], [])
    monkeypatch.chdir("/")
    assert all(os.path.isabs(image.location) for index in range(SAMPLES) for image in corpus.images(index))


def test_an_image_of_two_data_files_is_measured_once(run: Run, measured: list[str]) -> None:
    folder = Path(run.source.path).parent
    copy = folder / "copy.json"
    copy.write_bytes(Path(run.source.path).read_bytes())
    run.source = replace(run.source, path=(run.source.path, str(copy)))
    corpus, _ = run.load()
    assert len(corpus) == 2 * SAMPLES
    assert len(measured) == len(set(measured))
    for index in range(SAMPLES):
        assert corpus.images(index) == corpus.images(SAMPLES + index)


def contents(corpus: Corpus, report: CheckReport) -> list[Any]:
    """All that a run takes from a corpus."""
    return [
        asdict(report),
        corpus.lengths.tokens.tolist(),
        corpus.lengths.patches.tolist(),
        corpus.supervised.tolist(),
        [(corpus.layout(number).input_ids.tolist(), corpus.images(number)) for number in range(len(corpus))],
    ]


def damages(content: bytes, chance: random.Random) -> Iterator[bytes]:
    """The content with a bit turned, cut short, and emptied."""
    for _ in range(6):
        place = chance.randrange(len(content))
        yield content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]
    yield content[: chance.randrange(len(content))]
    yield b""


def test_no_damage_to_the_cache_becomes_another_corpus(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    expected = contents(*run.load())
    chance = random.Random(0)
    files = [path for path in sorted(run.folder.rglob("*")) if path.is_file() and path.suffix != ".lock"]
    assert len(files) >= 13, "a part's three files, sizes, lengths and report with their checksums, and headers"
    for path in files:
        original = path.read_bytes()
        for damaged in damages(original, chance):
            path.write_bytes(damaged)
            caplog.clear()
            assert contents(*run.load()) == expected, path.name
            if path.suffix != ".sqlite":
                (line,) = caplog.messages
                assert "damaged or incomplete: building it again" in line
        path.unlink()
        assert contents(*run.load()) == expected, f"without {path.name}"


def test_a_damaged_row_of_the_header_cache_is_measured_again(run: Run, measured: list[str]) -> None:
    expected = contents(*run.load())
    (cache,) = run.folder.glob("headers-*.sqlite")
    with closing(sqlite3.connect(cache)) as connection, connection:
        connection.execute("UPDATE headers SET height = height + 28 WHERE location LIKE '%large.png'")
    shutil.rmtree(run.folder / "corpora")
    measured.clear()
    assert contents(*run.load()) == expected
    assert measured == ["large.png"]
