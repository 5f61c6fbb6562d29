"""The store of image features: whole entries or none, whoever writes, dies or damages it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from triptych.rows.feature_store import FeatureFile, FeatureReader, FeatureShape, entry_name

SHAPE = FeatureShape(levels=2, hidden=8)


def name(number: int) -> bytes:
    return entry_name(f"/images/{number}.jpg", (1000, number), (56, 84))


def values(number: int) -> NDArray[np.uint16]:
    """Features of 1 to 7 tokens that follow from the number."""
    random = np.random.default_rng(number)
    return random.integers(0, 2**16, (SHAPE.levels, 1 + number % 7, SHAPE.hidden), np.uint16)


def read(reader: FeatureReader, number: int) -> NDArray[np.uint16] | None:
    target = np.empty_like(values(number))
    return target if reader.read(name(number), target) else None


def write(folder: Path, numbers: range) -> None:
    file = FeatureFile(folder)
    for number in numbers:
        file.add(name(number), values(number))
    file.close()


def opened(folder: Path) -> FeatureReader:
    reader = FeatureReader(folder, SHAPE)
    reader.refresh()
    return reader


def held(folder: Path, numbers: range) -> list[int]:
    """The entries that a new reader gets back; each must be right."""
    reader = opened(folder)
    found = {number: read(reader, number) for number in numbers}
    assert all(np.array_equal(value, values(number)) for number, value in found.items() if value is not None)
    return [number for number, value in found.items() if value is not None]


def test_what_is_added_is_read_back_at_once(tmp_path: Path) -> None:
    reader = FeatureReader(tmp_path / "store", SHAPE)
    reader.refresh()  # nothing is there yet
    file = FeatureFile(tmp_path / "store")
    for number in range(20):
        assert name(number) not in reader
        file.add(name(number), values(number))
        reader.refresh()
        found = read(reader, number)
        assert found is not None
        assert np.array_equal(found, values(number))
    assert held(tmp_path / "store", range(25)) == list(range(20))


def test_each_level_of_a_row_is_filled_in_place(tmp_path: Path) -> None:
    write(tmp_path, range(3))
    reader = opened(tmp_path)
    row = np.zeros((SHAPE.levels, 10, SHAPE.hidden), np.uint16)
    assert reader.read(name(2), row[:, 4:7])
    assert np.array_equal(row[:, 4:7], values(2))
    assert not row[:, :4].any()
    assert not row[:, 7:].any()


def test_names_tell_files_versions_and_sizes_apart() -> None:
    described = [
        ("/a.jpg", (10, 1), (56, 84)),
        ("/b.jpg", (10, 1), (56, 84)),
        ("/a.jpg", (11, 1), (56, 84)),
        ("/a.jpg", (10, 2), (56, 84)),
        ("/a.jpg", (10, 1), (84, 56)),
        ("data:image/png;base64,AAAA", (10, 1), (56, 84)),
        ("data:image/png;base64,AAAB", (10, 1), (56, 84)),
    ]
    assert len({entry_name(*each) for each in described}) == len(described)
    assert entry_name(*described[0]) == entry_name(*described[0])


def test_two_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write, args=(tmp_path, range(start, start + 300))) for start in (0, 200)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert held(tmp_path, range(600)) == list(range(500))
    assert len(list(tmp_path.glob("*.entries"))) == 2


WRITE_FOR_EVER = """
import itertools, sys
from pathlib import Path
import numpy as np
from triptych.rows.feature_store import FeatureFile, entry_name
file = FeatureFile(Path(sys.argv[1]))
for number in itertools.count():
    random = np.random.default_rng(number)
    values = random.integers(0, 2**16, (2, 1 + number % 7, 8), np.uint16)
    file.add(entry_name(f"/images/{number}.jpg", (1000, number), (56, 84)), values)
"""


def test_a_kill_while_writing_leaves_whole_entries_only(tmp_path: Path) -> None:
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path)])
        records = None
        while records is None or records.stat().st_size < 4000:
            time.sleep(0.01)
            assert writer.poll() is None
            records = max(tmp_path.glob("*.entries"), key=os.path.getmtime, default=None)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    found = held(tmp_path, range(20_000))
    assert len(found) > 90
    assert found == list(range(len(found)))
    write(tmp_path, range(20_000, 20_010))
    assert held(tmp_path, range(20_000, 20_010)) == list(range(20_000, 20_010))


def test_a_record_cut_off_is_no_entry(tmp_path: Path) -> None:
    write(tmp_path, range(10))
    (records,) = tmp_path.glob("*.entries")
    whole = records.read_bytes()
    for length in range(len(whole)):
        records.write_bytes(whole[:length])
        count = length // (len(whole) // 10)
        assert held(tmp_path, range(10)) == list(range(count))


@pytest.mark.parametrize("suffix", ["features", "entries"])
def test_a_flipped_bit_anywhere_costs_one_entry_and_never_gives_a_wrong_one(tmp_path: Path, suffix: str) -> None:
    write(tmp_path, range(6))
    (file,) = tmp_path.glob(f"*.{suffix}")
    whole = file.read_bytes()
    for place in range(0, len(whole), 5):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        file.write_bytes(bytes(damaged))
        assert len(held(tmp_path, range(6))) == 5


def test_features_cut_off_or_gone_count_as_absent(tmp_path: Path) -> None:
    write(tmp_path, range(6))
    (file,) = tmp_path.glob("*.features")
    file.write_bytes(file.read_bytes()[:-1])
    assert held(tmp_path, range(6)) == list(range(5))
    file.unlink()
    assert held(tmp_path, range(6)) == []


def test_what_is_made_anew_takes_the_place_of_what_was_damaged(tmp_path: Path) -> None:
    write(tmp_path, range(3))
    (file,) = tmp_path.glob("*.features")
    file.write_bytes(bytes(file.stat().st_size))
    reader = opened(tmp_path)
    assert read(reader, 1) is None
    assert name(1) not in reader
    write(tmp_path, range(1, 2))
    reader.refresh()
    found = read(reader, 1)
    assert found is not None
    assert np.array_equal(found, values(1))
    assert held(tmp_path, range(3)) == [1]


def test_a_write_that_fails_leaves_the_store_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = FeatureFile(tmp_path)
    file.add(name(0), values(0))
    whole = os.write

    def half(handle: int, content: memoryview) -> int:
        if len(content) < 100:  # the record, which is smaller than these features
            whole(handle, content[:7])
            raise OSError(28, "No space left on device")
        return whole(handle, content)

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OSError, match="No space"):
        file.add(name(6), values(6))
    monkeypatch.undo()
    file.add(name(13), values(13))
    file.close()
    assert held(tmp_path, range(20)) == [0, 13]


def test_an_empty_store_taken_away_is_no_error(tmp_path: Path) -> None:
    write(tmp_path / "store", range(3))
    reader = opened(tmp_path / "store")
    for path in (tmp_path / "store").iterdir():
        path.unlink()
    reader.refresh()
    assert read(reader, 0) is None
