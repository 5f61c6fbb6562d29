"""Lines, members and files that are, or say that they are, of gigabytes: each is a problem, memory stays bounded."""

from __future__ import annotations

import gzip
import io
import json
import resource
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import tiny
from triptych.corpus.execution.executor import LocalEngine
from triptych.corpus.loading import load_or_build
from triptych.sources import tars
from triptych.sources.records import Source
from triptych.sources.text_files import csv_files, json_files

GOOD = json.dumps(tiny.record([], "hi", "yes")).encode()
LIMIT = 2 << 20
PIECE = bytes([120]) * (1 << 20)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (json_files, csv_files, tars):
        monkeypatch.setattr(module, "MAX_RECORD", LIMIT)


def problems(path: Path) -> tuple[int, list[str]]:
    """Good samples, and the problems as printed without the folder."""
    cache = path.parent / f"cache-{path.name}"
    _, report = load_or_build([Source(str(path))], None, cache, LocalEngine(1))
    return report.ok, [str(problem).removeprefix(f"{path.parent}/") for problem in report.problems]


def packed(path: Path, pieces: Iterable[bytes]) -> Path:
    with gzip.open(path, "wb", 1) as file:
        for piece in pieces:
            file.write(piece)
    return path


@pytest.mark.usefixtures("small")
def test_one_huge_line_or_element_is_a_problem_and_the_rest_is_read(tmp_path: Path) -> None:
    plain = tmp_path / "plain.jsonl"
    plain.write_bytes(b"\n".join([GOOD, b'{"messages": "' + 5 * PIECE, GOOD, b"", GOOD + b"x", GOOD]))
    good, found = problems(plain)
    assert good == 3
    assert found[0].startswith("plain.jsonl:2: bad-shape: a line is over "), found
    assert found[1].startswith("plain.jsonl:5: bad-shape: not valid JSON"), "lines after it keep their numbers"
    for name, pieces in {
        "zeros.jsonl.gz": [GOOD, b"\n", *[bytes(1 << 20)] * 20],
        "blanks.jsonl.gz": [GOOD, b"\n", *[b" " * (1 << 20)] * 20],
        "array.json.gz": [b"[", GOOD, b',"', *[PIECE] * 20],
        "quote.csv.gz": [b'question,answer\nhi,yes\n"', *[PIECE] * 20],
    }.items():
        good, found = problems(packed(tmp_path / name, pieces))
        assert good == 1, (name, found)
        assert len(found) == 1, (name, found)
        assert found[0].startswith(f"{name}: bad-shape: "), found
        assert "bytes" in found[0], found


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE], ids=["file", "L", "x"])
@pytest.mark.parametrize("size", [50 * 10**9, 2**63, LIMIT + 1])
def test_a_tar_that_claims_more_than_it_has(tmp_path: Path, kind: bytes, size: int) -> None:
    path = tmp_path / "a.tar"
    start = header("0.json", len(GOOD)) + GOOD.ljust(512, b"\0")
    path.write_bytes(start + header("1.json", size, kind) + GOOD.ljust(512, b"\0") + bytes(1024))
    good, found = problems(path)
    assert good == 1
    assert any("damaged tar file" in problem for problem in found), found


def test_a_sparse_image_file_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    with tiny.write_image(tmp_path / "a.png", 40, 40).open("r+b") as file:
        file.truncate(50 * 10**9)
    with tarfile.open(tmp_path / "b.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        record = json.dumps({"conversations": tiny.record([], "<image>", "yes")["conversations"]}).encode()
        info = tarfile.TarInfo("0.json")
        info.size = len(record)
        archive.addfile(info, io.BytesIO(record))
    content = (tmp_path / "b.tar").read_bytes()[:1024] + header("0.png", 50 * 10**9) + bytes(512)
    (tmp_path / "b.tar").write_bytes(content)
    (tmp_path / "a.json").write_text(json.dumps([tiny.record(["a.png"], "<image>", "yes")]))
    for name in ("a.json", "b.tar"):
        good, found = problems(tmp_path / name)
        assert good == 0, name
        assert any("image-unreadable" in problem and "over 1,073,741,824" in problem for problem in found), found


PROGRAM = """
import resource, sys
from pathlib import Path
import test_big_claims
print(test_big_claims.problems(Path(sys.argv[1])), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_under_a_bomb_is_bounded(tmp_path: Path) -> None:
    def lines() -> Iterator[bytes]:
        yield GOOD + b"\n"
        for _ in range(400):
            yield PIECE

    path = packed(tmp_path / "bomb.jsonl.gz", lines())
    assert path.stat().st_size < 4e6
    environment = {"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    command = [sys.executable, "-c", PROGRAM, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, preexec_fn=_no_core)
    assert "a line is over 134,217,728 bytes" in done.stdout
    peak = int(done.stdout.split()[-1]) * 1024
    assert peak < 900e6, f"{peak / 1e6:.0f} MB for 400 MB in a line"


def _no_core() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
