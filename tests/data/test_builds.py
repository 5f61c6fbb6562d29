"""Builds that are killed or meet each other: what is there afterwards is what one undisturbed build gives."""

import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import tiny
from triptych.images.size_cache import FILE

SAMPLES = 300
IMAGES = 400
KILLS = 20

BUILD = """
if __name__ == "__main__":  # its workers import only what they need
    import json, sys
    from dataclasses import asdict
    from pathlib import Path
    from triptych.corpus import image_sizes
    from triptych.sources.text_files import json_files
    from triptych.corpus.loading import load_or_build
    from triptych.corpus.execution.executor import LocalEngine
    from triptych.text.layout import Budget
    from triptych.sources.records import Source
    from triptych.corpus.examine import Encoder
    from triptych.family.family import read_model_files

    model, cache, workers, *data = sys.argv[1:]
    json_files.SHARD_BYTES = 1 << 12  # many shards of few records: there is much to be killed in
    image_sizes.IMAGES_PER_TASK = 8
    image_sizes.STORE_SECONDS = 0.05
    files = read_model_files(model)
    encoder = Encoder(files.template(), files.geometry, Budget(max_tokens=400), files.text_hash())
    engine = LocalEngine(int(workers), patience=0)
    print("begin", flush=True)
    _, report = load_or_build([Source(tuple(data))], encoder, Path(cache), engine)
    print(json.dumps(asdict(report)), flush=True)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data files over the same images, some of which are missing or broken."""
    folder = tmp_path_factory.mktemp("builds")
    pictures = [tiny.image(40 + 3 * number, 60, seed=number) for number in range(20)]
    for number in range(IMAGES):
        pictures[number % len(pictures)].save(folder / f"{number}.{'jpg' if number % 2 else 'png'}")
    (folder / "7.jpg").write_text("not an image")
    (folder / "8.png").unlink()
    chance = random.Random(0)
    for name in ("one.json", "two.jsonl"):
        records: list[Any] = []
        for number in range(SAMPLES):
            chosen = [chance.randrange(IMAGES) for _ in range(chance.randrange(4))]
            names = [f"{place}.{'jpg' if place % 2 else 'png'}" for place in chosen]
            records.append(tiny.record(names, "<image>" * len(names) + tiny.WORDS[number % 8] * 3, "yes"))
        records[100] = {"messages": 5}
        text = json.dumps(records) if name == "one.json" else "\n".join(map(json.dumps, records))
        (folder / name).write_text(text)
    return folder


def start(data: Path, model: Path, cache: Path, *names: str, workers: int = 2) -> "subprocess.Popen[str]":
    script = data / "build.py"
    script.write_text(BUILD)
    files = [str(data / name) for name in names]
    command = [sys.executable, str(script), str(model), str(cache), str(workers), *files]
    # A session of its own: whatever it starts can be found, and ended, by its number.
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finish(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """The report that a build prints."""
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    report: dict[str, Any] = json.loads(out.splitlines()[-1])
    return report


def files_of(cache: Path) -> dict[str, str]:
    """Hash of every file that a corpus consists of, by its name."""
    names = [*cache.glob("index/*/*"), *cache.glob("corpora/*.arrow"), *cache.glob("corpora/*.json")]
    return {
        str(name.relative_to(cache)): hashlib.sha256(name.read_bytes()).hexdigest()
        for name in names
        if not any(part.startswith(".") for part in name.relative_to(cache).parts)
    }


def headers(cache: Path) -> list[Any]:
    """All that the header cache holds, after SQLite's own check of it."""
    connection = sqlite3.connect(cache / FILE)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    rows = connection.execute("SELECT * FROM headers ORDER BY location").fetchall()
    connection.close()
    return rows


@pytest.fixture(scope="module")
def undisturbed(data: Path, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one build gives, in this many seconds after its beginning."""
    cache = tmp_path_factory.mktemp("undisturbed")
    process = start(data, model_dir, cache, "one.json", "two.jsonl")
    assert process.stdout is not None
    assert process.stdout.readline() == "begin\n"
    began = time.monotonic()
    report = finish(process)
    return {
        "seconds": time.monotonic() - began,
        "report": report,
        "files": files_of(cache),
        "headers": headers(cache),
    }


def test_a_build_that_is_killed_at_any_moment_is_made_up_for(
    data: Path, model_dir: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    chance = random.Random(0)
    ended = 0
    # In groups of builds on one cache, each killed; then one that is left alone.
    for group in range(4):
        cache = tmp_path / f"cache-{group}"
        for kill in range(KILLS // 4):
            process = start(data, model_dir, cache, "one.json", "two.jsonl")
            assert process.stdout is not None
            assert process.stdout.readline() == "begin\n"
            time.sleep(undisturbed["seconds"] * (kill + chance.random()) / (KILLS // 4))
            os.kill(process.pid, signal.SIGKILL)
            process.communicate(timeout=60)
            ended += process.returncode == 0
        assert finish(start(data, model_dir, cache, "one.json", "two.jsonl")) == undisturbed["report"]
        assert files_of(cache) == undisturbed["files"]
        assert headers(cache) == undisturbed["headers"]
        assert not list(cache.glob("index/.*")), "what was begun is swept away"
    assert KILLS - ended >= 5, "builds were killed in their work, not after it"


@pytest.mark.parametrize("other", [("one.json", "two.jsonl"), ("two.jsonl",)], ids=["same run", "other run"])
def test_two_builds_at_once_are_both_right(
    data: Path, model_dir: Path, undisturbed: dict[str, Any], tmp_path: Path, other: tuple[str, ...]
) -> None:
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    expected = finish(start(data, model_dir, alone, *other, workers=1))
    processes = [
        start(data, model_dir, shared, "one.json", "two.jsonl", workers=1),
        start(data, model_dir, shared, *other, workers=1),
    ]
    assert [finish(process) for process in processes] == [undisturbed["report"], expected]
    assert files_of(shared) == undisturbed["files"] | files_of(alone)
    assert headers(shared) == undisturbed["headers"]
