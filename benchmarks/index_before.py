"""Does a sample cost more to index than it did at an earlier commit?

    git worktree add /tmp/before COMMIT
    python benchmarks/index_before.py --tokenizer DIR --before /tmp/before/src

Method: records of the work of `scale.py`, as JSON lines. Two processes, one with the code of the earlier commit,
examine the shards of the file in turn, several times (read, parse, check, tokenize and locate images: what `triptych
index` does for each sample in its workers). Of each shard the shortest processor time of each version counts, since
other work on the machine only ever adds to it; the ratio is that of their sums. Result:
benchmarks/results/index_before.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from index_peer import write_model
from workload import SMALL_SIZES, commit, write_pool, write_records

RESULTS = Path(__file__).parent / "results" / "index_before.jsonl"
HERE = Path(__file__).parent.parent / "src"
ROUND = """
import sys, time
from triptych.corpus.examine import Examiner, Task
from triptych.family.family import read_model_files
from triptych.sources import readers
from triptych.sources.records import Source
model, data, images = sys.argv[1:]
examine = Examiner([Source(data, media_dir=images)], read_model_files(model).template())
shards = list(readers.cut(data))
for line in sys.stdin:
    times = []
    for shard in shards:
        began = time.process_time()
        examine(Task(0, 0, shard))
        times.append(time.process_time() - began)
    print(*times, flush=True)
"""
"""One version: on each line that it is given, all shards once."""


def start(source: Path, folder: Path) -> subprocess.Popen[str]:
    """A process with the code in ``source``."""
    environment = {**os.environ, "PYTHONPATH": str(source)}
    command = [sys.executable, "-c", ROUND, *(str(folder / name) for name in ("model", "train.jsonl", "images"))]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def examine(process: subprocess.Popen[str]) -> list[float]:
    """Seconds of each shard, of one round.

    Raises:
        RuntimeError: if the process ended.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("a process ended; what it said is above")
    return [float(number) for number in line.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the cost of indexing with that of an earlier commit.")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="Qwen2-VL's tokenizer.json")
    parser.add_argument("--before", type=Path, required=True, metavar="SRC", help="`src` of the earlier commit")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").mkdir()
        write_model(folder / "model", options.tokenizer)
        pool = write_pool(folder / "images", 500, 0, sizes=SMALL_SIZES)
        write_records(folder / "train.jsonl", options.samples, pool, 0, as_lines=True)
        versions = {"before": start(options.before, folder), "now": start(HERE, folder)}
        found: dict[str, list[list[float]]] = {version: [] for version in versions}
        for _ in range(options.rounds):
            for version, process in versions.items():
                found[version].append(examine(process))
        for process in versions.values():
            process.communicate()
    best = {version: sum(map(min, zip(*rounds, strict=True))) for version, rounds in found.items()}
    entry = {
        "commit": commit(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "samples": options.samples,
        "rounds": options.rounds,
        **{f"{version}_us": seconds / options.samples * 1e6 for version, seconds in best.items()},
        "ratio": best["now"] / best["before"],
    }
    for key, value in entry.items():
        print(f"{key:10} {value}")
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


if __name__ == "__main__":
    main()
