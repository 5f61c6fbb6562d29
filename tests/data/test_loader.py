"""Rows out of worker processes: the same rows, in order, within the budget; what goes wrong there is said here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from triptych.errors import ConfigError, TriptychError
from triptych.images import pixels
from triptych.images.measure import ImageError
from triptych.planning.plan import BatchSpec, Plan, make_plan
from triptych.rows.builder import RowBuilder
from triptych.rows.loader import Loading, RowLoader
from triptych.run.prepare import prepare
from triptych.run.run_file import load
from triptych.terminal import Terminal

# Nothing here imports torch: the stand-ins below are imported by the workers.


@pytest.fixture
def builder(small_model_dir: Path, tmp_path: Path) -> RowBuilder:
    """Of twelve samples of no to four images each."""
    import tiny

    data = tiny.write_dataset(tmp_path, 12, seed=4)
    prepared = prepare(load(tiny.write_run(tmp_path, small_model_dir, data)), ("train",), Terminal())
    return RowBuilder(prepared.corpora["train"], prepared.encoder.template.filler())


def plan_of(rows: int) -> Plan:
    """Row k holds sample k."""
    return Plan(np.arange(rows), np.arange(rows + 1), np.array([0, rows]))


def values(row: Any) -> dict[str, Any]:
    return {field.name: getattr(row, field.name) for field in fields(row)}


def assert_equal(one: Any, other: Any) -> None:
    for name, value in values(one).items():
        found = getattr(other, name)
        if is_dataclass(value):
            assert_equal(value, found)
        elif isinstance(value, np.ndarray):
            assert (found.dtype, found.shape) == (value.dtype, value.shape), name
            assert np.array_equal(found, value), name
        else:
            assert found == value, name


@dataclass(frozen=True)
class StandIn:
    """Builds rows of one number, of a megabyte each, and notes which."""

    notes: Path
    does: str = ""
    on: int = -1

    def build(self, indices: list[int], _pool: Any, _memory: Any, watch: Any) -> np.ndarray[Any, Any]:
        (number,) = indices
        with self.notes.open("a") as file:
            file.write(f"{number} {os.getpid()}\n")
        if number == self.on:
            if self.does == "dawdle":
                time.sleep(0.5)
            elif self.does == "wait for the others":
                end = time.monotonic() + 60
                while len(self.noted()) < 12 and time.monotonic() < end:
                    time.sleep(0.05)
            elif self.does == "stop" and self.once("stopped"):
                with watch.reading(f"/images/{number}.png"):
                    os.kill(os.getpid(), signal.SIGSTOP)
            elif self.does == "hang":
                with watch.reading(f"/images/{number}.png"):
                    time.sleep(3600)
            elif self.does == "hang without":
                time.sleep(3600)
            elif self.does == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.does == "refuse":
                raise ConfigError("row 3 is refused")
            elif self.does == "confuse":
                raise ImageError("image-missing", "an error that does not pickle")
        return np.array([number, "torch" in sys.modules, len(os.listdir("/proc/self/fd"))])

    def once(self, name: str) -> bool:
        """Whether this is the first time, in whatever process."""
        try:
            (self.notes.parent / name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def bytes_at_most(self, indices: np.ndarray[Any, Any]) -> int:
        return 2**20 * (1 if len(indices) == 0 or indices[0] != 7 else 6)

    def noted(self) -> dict[int, int]:
        """Row -> process"""
        return dict(map(int, line.split()) for line in self.notes.read_text().splitlines())  # type: ignore[misc]


def loader(stand_in: StandIn, rows: int = 12, **loading: Any) -> RowLoader:
    return RowLoader(plan_of(rows), stand_in, Loading(**{"workers": 2, **loading}))  # type: ignore[arg-type]


@pytest.mark.parametrize("threads", [1, 3])
def test_rows_of_two_workers_are_those_of_none(builder: RowBuilder, threads: int) -> None:
    plan = make_plan(builder.corpus.lengths, BatchSpec(samples=3), epochs=2, seed=0)
    here, there = RowLoader(plan, builder, Loading()), RowLoader(plan, builder, Loading(2, threads=threads))
    for number in range(len(plan)):
        row = there.take(number)
        assert_equal(row, here.take(number))
        sized = [image for index in plan.row(number).tolist() for image in builder.corpus.images(index)]
        alone = [
            pixels.load_patches(i.location, (i.height, i.width), (i.resized_height, i.resized_width), geometry)
            for geometry in [builder.corpus.geometry]
            for i in sized
        ]
        assert np.array_equal(row.pixels, pixels.join(alone, builder.corpus.geometry))
        assert row.pixels.flags.writeable, "torch warns of memory that it may not write to"


def test_a_sample_that_is_lost_leaves_the_row_as_if_it_had_never_been_there(builder: RowBuilder) -> None:
    shown = [index for index in range(12) if len(builder.corpus.images(index)) > 1]
    lost = shown[1]
    Path(builder.corpus.images(lost)[-1].location).unlink()
    plan = Plan(np.array([shown[0], lost, shown[2]]), np.array([0, 3]), np.array([0, 1]))
    row = RowLoader(plan, builder, Loading(1)).take(0)
    assert [(problem.code, problem.origin) for problem in row.problems] == [
        ("image-missing", builder.corpus.origin(lost))
    ]
    assert_equal(replace(row, problems=()), builder.build([shown[0], shown[2]]))


def test_a_row_takes_no_more_than_was_said_before(builder: RowBuilder) -> None:
    for indices in ([0], [1, 2, 3], list(range(12)), []):
        row = builder.build(indices)
        taken = sum(value.nbytes for value in values(row).values() if isinstance(value, np.ndarray))
        assert taken <= builder.bytes_at_most(np.array(indices, np.int64)) + 1000


def test_the_bytes_ahead_stay_within_the_budget(tmp_path: Path) -> None:
    found = loader(StandIn(tmp_path / "notes"), rows=20, budget=4 * 2**20)
    ahead = []
    for number in range(20):
        assert found.take(number)[0] == number
        ahead.append((found.bytes_ahead, len(found._ahead)))
    assert max(rows for _, rows in ahead) == 4
    assert all(size <= 4 * 2**20 or rows == 1 for size, rows in ahead), "a row over the budget is alone"
    assert max(size for size, _ in ahead) == 6 * 2**20, "but comes"


def test_uneven_rows_come_in_order_and_the_idle_worker_goes_on(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path / "notes", "wait for the others", 0)
    found = loader(stand_in)
    assert [int(found.take(number)[0]) for number in range(12)] == list(range(12))
    noted = stand_in.noted()
    assert sorted(noted) == list(range(12))
    assert sum(process == noted[0] for process in noted.values()) == 1, "the other one took what the first left"


def test_workers_import_no_torch_and_leave_no_file_open(tmp_path: Path) -> None:
    found = loader(StandIn(tmp_path / "notes"), rows=40, workers=1)
    rows = [found.take(number).tolist() for number in range(40)]
    assert not any(torch for _, torch, _ in rows)
    assert rows[-1][2] <= rows[3][2]
    before = len(os.listdir("/proc/self/fd"))
    del rows
    found.close()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_going_on_at_a_row_builds_nothing_before_it_and_nothing_of_other_ranks(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path / "notes")
    found = loader(stand_in, stride=2)
    found.begin(5)
    assert [int(found.take(number)[0]) for number in (5, 7, 9, 11)] == [5, 7, 9, 11]
    assert sorted(stand_in.noted()) == [5, 7, 9, 11]
    assert found._workers is None, "no process waits for nothing"
    assert found.take(9)[0] == 9, "another pass"


def test_the_first_rows_are_built_before_anyone_asks(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path / "notes")
    found = loader(stand_in, rows=3)
    found.begin(0)
    give_up = time.monotonic() + 20
    while not stand_in.notes.exists() or len(stand_in.noted()) < 3:
        assert time.monotonic() < give_up
        time.sleep(0.02)
    found.close()


@pytest.mark.parametrize(
    ("does", "error", "message"),
    [
        ("die", TriptychError, r"died \(exit status -9\).*data\.workers or data\.prefetch_mb"),
        ("refuse", ConfigError, "row 3 is refused"),
        ("confuse", TriptychError, "ImageError: an error that does not pickle"),
    ],
)
def test_what_goes_wrong_in_a_worker_is_said_here(
    tmp_path: Path, does: str, error: type[Exception], message: str
) -> None:
    found = loader(StandIn(tmp_path / "notes", does, 3))
    with pytest.raises(error, match=message):
        [found.take(number) for number in range(4)]
    assert found._workers is None


def test_workers_that_were_killed_while_they_waited_are_missed(tmp_path: Path) -> None:
    found = loader(StandIn(tmp_path / "notes"), budget=1)
    found.take(0)
    assert found._workers is not None
    found._workers.processes[0].kill()
    found._workers.processes[0].wait()
    with pytest.raises(TriptychError, match="died"):
        [found.take(number) for number in range(1, 12)]


def test_a_stopped_worker_is_named_and_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = loader(StandIn(tmp_path / "notes", "stop", 3), stall_seconds=1.5)
    began = time.monotonic()
    assert [int(found.take(number)[0]) for number in range(12)] == list(range(12))
    assert time.monotonic() - began < 20
    (said,) = [record.getMessage() for record in caplog.records]
    assert "has not gone on for 1.5 s, with '/images/3.png' in hand" in said
    assert "replacing it" in said


def test_workers_that_were_stopped_while_they_waited_are_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = loader(StandIn(tmp_path / "notes"), budget=1, stall_seconds=1.5)
    found.take(0)
    assert found._workers is not None
    for process in found._workers.processes:
        os.kill(process.pid, signal.SIGSTOP)
    assert [int(found.take(number)[0]) for number in range(1, 12)] == list(range(1, 12))
    assert "with no image in hand" in caplog.text


def test_an_image_that_hangs_twice_is_given_up_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = loader(StandIn(tmp_path / "notes", "hang", 3), stall_seconds=1.0)
    with pytest.raises(TriptychError, match=r"'/images/3\.png' did not finish within 1 s, twice.*data\.stall_seconds"):
        [found.take(number) for number in range(12)]
    assert len(caplog.records) == 2


def test_a_row_that_stalls_for_ever_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triptych.rows.loader.STALLS", 1)
    found = loader(StandIn(tmp_path / "notes", "hang without", 0), stall_seconds=1.0)
    with pytest.raises(TriptychError, match=r"row 0 was begun 2 times.*data\.stall_seconds"):
        found.take(0)
    assert found._workers is None


def test_a_worker_at_work_is_left_in_peace(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = loader(StandIn(tmp_path / "notes", "dawdle", 0), workers=1, stall_seconds=30)
    [found.take(number) for number in range(12)]
    assert caplog.records == []


def test_a_pipe_in_place_of_an_image_is_a_lost_sample_and_no_wait(builder: RowBuilder) -> None:
    """A pipe that appears after the check, as a network file that never answers would behave."""
    shown = [index for index in range(12) if len(builder.corpus.images(index)) > 1]
    lost = shown[1]
    place = Path(builder.corpus.images(lost)[0].location)
    place.unlink()
    os.mkfifo(place)
    plan = Plan(np.array([shown[0], lost, shown[2]]), np.array([0, 3]), np.array([0, 1]))
    row = RowLoader(plan, builder, Loading(1, stall_seconds=3)).take(0)
    assert [problem.code for problem in row.problems] == ["image-unreadable"]
    assert_equal(replace(row, problems=()), builder.build([shown[0], shown[2]]))


PARENT = """
import sys, time
from pathlib import Path
from test_loader import StandIn, loader
found = loader(StandIn(Path(sys.argv[1]), "dawdle", 2))
found.take(0)
print(*(process.pid for process in found._workers.processes), flush=True)
time.sleep(60)
"""


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PARENT, str(tmp_path / "notes")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        assert all(Path(f"/proc/{pid}").exists() for pid in workers)
        parent.kill()
    give_up = time.monotonic() + 20
    while any(running(pid) for pid in workers):
        assert time.monotonic() < give_up
        time.sleep(0.05)


def running(pid: int) -> bool:
    """Whether a process is there, and no zombie that nobody waits for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_run_takes_the_decode_and_the_budget_from_its_settings(small_model_dir: Path, tmp_path: Path) -> None:
    import tiny
    from triptych.training.train import _datasets

    data = {"decode": "fast", "workers": 3, "prefetch_mb": 2}
    settings = load(tiny.write_run(tmp_path, small_model_dir, tiny.write_dataset(tmp_path, 2), data=data))
    prepared = prepare(settings, ("train",), Terminal())
    third_rank = SimpleNamespace(world_size=4, process_index=2)
    context: Any = SimpleNamespace(
        settings=settings,
        prepared=prepared,
        args=third_rank,
        start=SimpleNamespace(step=5),
        plans={"train": plan_of(2)},
        share="nothing",
    )
    dataset = _datasets(context, None, with_image=False)["train"]
    assert dataset.loader.builder.decode == "fast"
    assert replace(dataset.loader.loading, threads=1) == Loading(3, 2 * 2**20, 4, stall_seconds=120.0)
