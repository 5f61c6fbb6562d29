"""Where work is done changes nothing but the time: one process or several, large pieces or small, and how they end."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tiny
from triptych.corpus import image_sizes
from triptych.corpus.examine import CheckReport, Encoder
from triptych.corpus.execution.executor import AHEAD, Engine, LocalEngine
from triptych.corpus.loading import load_or_build
from triptych.errors import ConfigError, TriptychError
from triptych.family.family import read_model_files
from triptych.sources.records import Source
from triptych.sources.text_files import json_files
from triptych.text.layout import Budget

IN_PROCESS, WORKERS = LocalEngine(1), LocalEngine(2, patience=0)


def place_of_work(item: int) -> tuple[int, int]:
    """The item and the process that has it; later items are done sooner."""
    time.sleep(0.02 if item % 2 else 0)
    return item, os.getpid()


def complain(item: int) -> int:
    if item == 7:
        raise ConfigError("number 7 cannot be read")
    return item


def fall(item: int) -> int:
    if item == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def test_results_come_in_order_whoever_gives_them() -> None:
    found = list(WORKERS.map(place_of_work, range(40)))
    assert [item for item, _ in found] == list(range(40))
    processes = {process for _, process in found}
    assert os.getpid() in processes, "the first is done here, for it may be the only one"
    assert 1 < len(processes) <= 3
    assert {process for _, process in IN_PROCESS.map(place_of_work, range(4))} == {os.getpid()}


def test_small_work_starts_no_process() -> None:
    patient = LocalEngine(2, patience=1000)
    assert {process for _, process in patient.map(place_of_work, range(4))} == {os.getpid()}


@pytest.mark.parametrize("engine", [IN_PROCESS, WORKERS], ids=["in process", "workers"])
def test_nothing_in_nothing_out(engine: Engine) -> None:
    assert list(engine.map(complain, [])) == []


def test_items_are_taken_as_they_are_needed() -> None:
    taken: list[int] = []
    results = WORKERS.map(complain, (taken.append(item) or item for item in range(1000, 2000)))
    assert [next(results) for _ in range(3)] == [1000, 1001, 1002]
    assert len(taken) <= 3 + 2 * AHEAD, "a list of millions does not wait in memory"
    results.close()


@pytest.mark.parametrize("engine", [IN_PROCESS, WORKERS], ids=["in process", "workers"])
def test_an_error_arrives_as_itself_behind_what_was_done_before(engine: Engine) -> None:
    results = engine.map(complain, range(100))
    assert [next(results) for _ in range(7)] == list(range(7))
    with pytest.raises(ConfigError, match=r"^number 7 cannot be read$"):
        next(results)


def test_a_worker_that_dies_is_said_in_words_that_help() -> None:
    with pytest.raises(TriptychError, match=r"worker process died.*memory.*--workers"):
        list(WORKERS.map(fall, range(1, 100)))


ENDLESS = """
import os, sys, time

def work(item):
    print(os.getpid(), flush=True)
    time.sleep(0.05)

if __name__ == "__main__":
    from triptych.corpus.execution.executor import LocalEngine
    for _ in LocalEngine(2, patience=0).map(work, range(10**9)):
        pass
"""


def is_alive(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def session(process: int) -> list[int]:
    """Everything alive that ``process`` started, however far down, if it leads a session."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == process and fields[0] != "Z":
            found.append(int(entry.parent.name))
    return found


def test_workers_end_when_the_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    with (tmp_path / "out").open("w") as out:  # a pipe would end the workers by itself, as nobody reads it
        parent = subprocess.Popen([sys.executable, str(script)], stdout=out, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while len(set((tmp_path / "out").read_text().split())) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        workers = set(map(int, (tmp_path / "out").read_text().split())) - {parent.pid}
        assert all(map(is_alive, workers))
        assert set(session(parent.pid)) > workers
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        deadline = time.monotonic() + 10
        while session(parent.pid):
            assert time.monotonic() < deadline, "orphans"
            time.sleep(0.05)
    finally:
        for process in session(parent.pid):
            os.kill(process, signal.SIGKILL)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An array and lines with good and bad records over images that they share."""
    folder = tmp_path_factory.mktemp("engine")
    array = tiny.write_dataset(folder, 60)
    lines = array.read_text(encoding="utf-8").replace('}, {"conv', '}\n{"conv').strip("[]")
    assert lines.count("\n") == 59
    lines = lines.replace("\n", "\n\n{broken\n[1]\n", 3) + '\n{"messages": [5]}'
    (folder / "lines.jsonl").write_text(lines, encoding="utf-8")
    (folder / "images" / "train-7-0.png").write_text("not an image")
    return folder


def built(data: Path, model_dir: Path, cache: Path, engine: Engine) -> tuple[CheckReport, dict[str, str]]:
    """The report, and the hash of every Arrow file by its name."""
    files = read_model_files(str(model_dir))
    encoder = Encoder(files.template(), files.geometry, Budget(max_tokens=200), files.text_hash())
    source = Source((str(data / "train.json"), str(data / "lines.jsonl")))
    _, report = load_or_build([source], encoder, cache, engine)
    arrow = {str(path.relative_to(cache)): path.read_bytes() for path in cache.glob("*/**/*.arrow")}
    return report, {name: hashlib.sha256(content).hexdigest() for name, content in arrow.items()}


@pytest.mark.parametrize(
    ("engine", "shard"),
    [(IN_PROCESS, 50), (IN_PROCESS, 5000), (WORKERS, 500), (WORKERS, 1 << 20)],
    ids=["in process, 50 bytes", "in process, 5 kB", "workers, 500 bytes", "workers, 1 MB"],
)
def test_an_index_does_not_show_how_it_was_built(
    data: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Engine, shard: int
) -> None:
    report, files = expected = built(data, model_dir, tmp_path / "usual", IN_PROCESS)
    assert len(files) == 6, "samples and images of two data files, sizes, lengths"
    assert {problem.code for problem in report.problems} == {"bad-shape", "image-unreadable"}
    monkeypatch.setattr(json_files, "SHARD_BYTES", shard)
    monkeypatch.setattr(image_sizes, "IMAGES_PER_TASK", 5)
    assert built(data, model_dir, tmp_path / "other", engine) == expected
