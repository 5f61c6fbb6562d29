"""A Ray cluster gives what this machine alone gives, though workers die."""

import gzip
import json
import os
import signal
import sqlite3
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

import tiny
from triptych.commands.check import index
from triptych.corpus.corpus import Corpus
from triptych.corpus.examine import CheckReport, Encoder, Examined, Examiner, Task
from triptych.corpus.execution.executor import Engine, LocalEngine
from triptych.corpus.execution.ray_executor import RETRIES, RayEngine
from triptych.corpus.loading import load_or_build
from triptych.errors import ConfigError, TriptychError
from triptych.family.family import read_model_files
from triptych.sources.records import Source
from triptych.sources.text_files import json_files
from triptych.text.layout import Budget

RECORDS = 120  # of each file


@pytest.fixture(scope="module")
def engine() -> Iterator[RayEngine]:
    """Two workers, which can import this module, and no process left when the tests are done."""
    tests = Path(__file__).parents[1]
    paths = [str(tests), str(tests / "data"), *filter(None, [os.environ.get("PYTHONPATH")])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield RayEngine()
    ray.shutdown()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    """Five files in as many formats over the same images, with defects of every kind."""
    folder = tmp_path_factory.mktemp("data")
    names = [f"{number}.png" for number in range(30)]
    for number, name in enumerate(names):
        tiny.write_image(folder / name, 40 + number, 90 - number, seed=number)
    (folder / "broken.png").write_bytes(b"not an image")
    random = np.random.default_rng(0)

    def records(file: int) -> list[Any]:
        made: list[Any] = []
        for number in range(RECORDS):
            chosen = [str(name) for name in random.choice(names, number % 4)]
            if number % 40 == 7:
                chosen = ["broken.png", "absent.png"]
            marks = len(chosen) + (number % 50 == 9)
            words = " ".join(random.choice(tiny.WORDS, 3))
            made.append(
                tiny.record(chosen, "<image>" * marks + words, str(random.choice(tiny.ANSWERS)), task=str(file))
            )
        return made

    lines = [json.dumps(record, ensure_ascii=False) for record in records(0)]
    lines[5:5] = ["", "{not json", "7"]
    (folder / "a.jsonl").write_bytes("\r\n".join(lines).encode())
    array = [*records(1), [1, 2]]
    (folder / "b.json").write_text(json.dumps(array, indent=1, ensure_ascii=False), encoding="utf-8")
    (folder / "c.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, records(2))).encode()))
    pq.write_table(pa.Table.from_pylist(records(3)), folder / "d.parquet", row_group_size=25)
    with tarfile.open(folder / "e.tar", "w") as archive:
        for number, record in enumerate(records(4)):
            path = folder / f"{number:04d}.json"
            path.write_text(json.dumps(record | {"images": [str(folder / name) for name in record["images"]]}))
            archive.add(path, path.name)
    return [Source(str(folder / name)) for name in ("a.jsonl", "b.json", "c.jsonl.gz", "d.parquet", "e.tar")]


@dataclass
class Job:
    """What is indexed, apart from where."""

    sources: list[Source]
    encoder: Encoder
    identity: str

    def load(self, cache: Path, engine: Engine) -> tuple[Corpus, CheckReport]:
        return load_or_build(self.sources, replace(self.encoder, identity=self.identity), cache, engine)


@pytest.fixture
def job(sources: list[Source], model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(json_files, "SHARD_BYTES", 3000)
    files = read_model_files(str(model_dir))
    return Job(sources, Encoder(files.template(), files.geometry, Budget(max_tokens=60)), files.text_hash())


def content(cache: Path) -> dict[str, Any]:
    """All that a cache folder holds: the bytes of its files by name, the rows of the header cache."""
    found: dict[str, Any] = {
        str(path.relative_to(cache)): path.read_bytes()
        for folder in ("index", "corpora")
        for path in (cache / folder).rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }
    (headers,) = cache.glob("headers-*.sqlite")
    connection = sqlite3.connect(headers)
    found["headers"] = connection.execute("SELECT * FROM headers ORDER BY location").fetchall()
    connection.close()
    return found


@pytest.fixture
def expected(job: Job, tmp_path: Path) -> dict[str, Any]:
    corpus, report = job.load(tmp_path / "local", LocalEngine(1))
    assert len(corpus) == report.ok > 3 * RECORDS
    assert report.shrunk
    assert {problem.code for problem in report.problems} == {
        "bad-shape",
        "marker-count",
        "image-missing",
        "image-unreadable",
        "too-long",
    }
    found = content(tmp_path / "local")
    assert len([name for name in found if name.endswith("samples.arrow")]) == 5
    return found


def test_a_cluster_writes_the_same_bytes(job: Job, engine: RayEngine, expected: dict[str, Any], tmp_path: Path) -> None:
    job.load(tmp_path / "ray", engine)
    assert content(tmp_path / "ray") == expected


class DyingExaminer(Examiner):
    """An examiner whose process is killed once, in the middle of the second file."""

    marker: Path

    def __call__(self, task: Task) -> Examined:
        if task.file == 1 and task.shard.start > 3000 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(task)


def test_a_worker_that_is_killed_changes_nothing(
    job: Job, engine: RayEngine, expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(*arguments: Any) -> Examiner:
        examiner = DyingExaminer(*arguments)
        examiner.marker = tmp_path / "killed"
        return examiner

    monkeypatch.setattr("triptych.corpus.index.Examiner", dying)
    job.load(tmp_path / "ray", engine)
    assert (tmp_path / "killed").exists()
    assert content(tmp_path / "ray") == expected


@dataclass
class Deadly:
    """Kills the process that works on one number, each time; notes the times."""

    number: int
    notes: Path

    def __call__(self, number: int) -> int:
        if number == self.number:
            with self.notes.open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return number


def test_what_kills_every_worker_ends_the_job_with_advice(engine: RayEngine, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    with pytest.raises(TriptychError, match="--workers"):
        list(engine.map(Deadly(3, notes), range(10)))
    assert notes.read_text() == "x" * (RETRIES + 1)


def test_items_are_taken_as_needed_and_results_come_in_order(engine: RayEngine) -> None:
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(3000):
            taken.append(number)
            yield number

    results = engine.map(float, numbers())
    first = next(results)
    assert len(taken) < 1500, "the first result comes before all items are listed"
    assert [first, *results] == list(map(float, range(3000)))


@pytest.mark.usefixtures("engine")
def test_a_data_file_that_vanishes_is_the_users_error(job: Job, tmp_path: Path) -> None:
    path = tmp_path / "gone.jsonl"
    path.write_text(json.dumps(tiny.record([], "hi", "yes")) + "\n")

    class Deleting(RayEngine):
        def map(self, function: Any, items: Any) -> Any:
            items = list(items)
            path.unlink(missing_ok=True)
            return super().map(function, items)

    job.sources = [Source(str(path))]
    with pytest.raises(ConfigError) as caught:
        job.load(tmp_path / "cache", Deleting())
    assert str(caught.value) == f"cannot read {str(path)!r}: No such file or directory"


def test_an_error_of_the_program_keeps_its_type(engine: RayEngine) -> None:
    with pytest.raises(ZeroDivisionError):
        list(engine.map((1).__truediv__, [1, 0]))


def test_an_address_where_no_cluster_is_is_the_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ConfigError, match=r"nobody\.example:6379"):
        RayEngine(address="nobody.example:6379")


@pytest.mark.usefixtures("engine")
def test_the_command_indexes_on_a_cluster(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    run = tiny.write_run(tmp_path, model_dir, tiny.write_dataset(tmp_path, 5))
    index(run, [], engine="ray", workers=1, address=None)
    assert "indexed 5 samples" in capsys.readouterr().err
