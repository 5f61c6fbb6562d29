"""Does the cost of a sample stay the same at a million samples, and does memory stay bounded?

    python benchmarks/scale.py --tokenizer DIR

Method: records of the work over a pool of 20,000 real files, as JSON lines; `triptych index` in a process of its own
with an empty cache, over the first 10,000 of them (before and after, since machines drift) and over all; then again
with nothing changed, then with other pixel limits. Memory is the sum over the process and its workers of their
proportional set size, sampled. Beside it, the time that parsing the same JSON takes on one core. Result:
benchmarks/results/scale.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import orjson
import psutil

from index_peer import MAX_PIXELS, write_model
from workload import SMALL_SIZES, write_pool, write_records

RESULTS = Path(__file__).parent / "results" / "scale.jsonl"
SAMPLED_SECONDS = 0.5


@dataclass(frozen=True)
class Measured:
    """What one command took."""

    seconds: float
    peak_bytes: int


def tree_bytes(process: psutil.Process) -> int:
    """Proportional set size of a process and all below it."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except psutil.Error:
            continue  # ended meanwhile
    return total


def index(folder: Path, data: Path, cache: str, *overrides: str) -> Measured:
    """`triptych index` over one file.

    Raises:
        RuntimeError: if it fails.
    """
    run = {
        "model": {"path": str(folder / "model")},
        "data": {"train": [{"path": str(data), "media_dir": str(folder / "images")}], "max_pixels": MAX_PIXELS},
        "batch": {"tokens": 8192},
        "output": str(folder / "output"),
    }
    (folder / "run.yaml").write_text(json.dumps(run))
    environment = {**os.environ, "TRIPTYCH_CACHE": str(folder / cache)}
    began = time.perf_counter()
    command = [sys.executable, "-m", "triptych", "index", str(folder / "run.yaml"), *overrides]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    peaks = [0]

    def watch() -> None:
        while process.poll() is None:
            peaks.append(tree_bytes(psutil.Process(process.pid)))
            time.sleep(SAMPLED_SECONDS)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, errors = process.communicate()
    seconds = time.perf_counter() - began
    watcher.join()
    if process.returncode:
        raise RuntimeError(errors.decode()[-2000:])
    return Measured(seconds, max(peaks))


def parse_seconds(data: Path) -> float:
    """What parsing the lines alone takes."""
    began = time.perf_counter()
    with data.open("rb") as file:
        for line in file:
            orjson.loads(line)
    return time.perf_counter() - began


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def head(data: Path, target: Path, lines: int) -> Path:
    with data.open("rb") as file, target.open("wb") as out:
        for _ in range(lines):
            out.write(file.readline())
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description="Index a million samples.")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="Qwen2-VL's tokenizer.json")
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--few", type=int, default=10_000)
    parser.add_argument("--files", type=int, default=20_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").mkdir()
        write_model(folder / "model", options.tokenizer)
        pool = write_pool(folder / "images", options.files, 0, sizes=SMALL_SIZES)
        data = folder / "train.jsonl"
        write_records(data, options.samples, pool, 0, as_lines=True)
        few = head(data, folder / "few.jsonl", options.few)
        small = [index(folder, few, "before").seconds]
        whole = index(folder, data, "cache")
        small.append(index(folder, few, "after").seconds)
        again = index(folder, data, "cache")
        limits = index(folder, data, "cache", "data.max_pixels=50176")
        per_few, per_sample = statistics.mean(small) / options.few, whole.seconds / options.samples
        entry = {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "samples": options.samples,
            "files": options.files,
            "json_mb": data.stat().st_size / 1e6,
            "index_mb": folder_bytes(folder / "cache") / 1e6,
            "seconds": whole.seconds,
            "us_per_sample": per_sample * 1e6,
            "us_per_sample_few": [seconds / options.few * 1e6 for seconds in small],
            "ratio_to_few": per_sample / per_few,
            "peak_mb": whole.peak_bytes / 1e6,
            "second_start_seconds": again.seconds,
            "second_start_share": again.seconds / whole.seconds,
            "second_start_peak_mb": again.peak_bytes / 1e6,
            "other_limits_seconds": limits.seconds,
            "parse_seconds": parse_seconds(data),
        }
    for key, value in entry.items():
        print(f"{key:22} {value}")
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


if __name__ == "__main__":
    main()
