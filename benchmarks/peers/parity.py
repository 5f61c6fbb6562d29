"""Does a LLaMA-Factory run file, unchanged, give the losses that LLaMA-Factory itself gives?

    python benchmarks/peers/compare.py --install ENVS                       once: an environment for each tool
    python benchmarks/peers/parity.py --python ENVS/lf/bin/python --work WORK [--cases NAME ...]

Method: the same run file and data are given to `llamafactory-cli train` and to `triptych train`, in float32 on one
thread of a CPU, on a random Qwen2-VL. Samples keep the order of the data (`disable_shuffling`), which is all that the
tools would draw otherwise, together with the adapters' start: LLaMA-Factory trains one first, and both go on from it.

    losses   every logged loss of each run of parity_cases.py; reported is the largest difference of a step
    ids      ids and labels of 200 conversations of 2 to 6 images, equal or not, for each way to choose what is learned

Result: one line of benchmarks/results/parity.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # workload.py and headers.py

from install import versions
from parity_cases import ADAPTER, CASES, LABELS, MAKE_ADAPTER, Case, write
from parity_data import write_all

from triptych import load_run
from workload import commit

RESULTS = Path(__file__).resolve().parents[1] / "results" / "parity.jsonl"
DRIVER = Path(__file__).parent / "drivers" / "encode_llamafactory.py"
ALLOWED = 1e-4
"""Largest difference of a loss that counts as the same."""
NAMED = ("llamafactory", "transformers", "torch", "torchvision", "peft", "accelerate")


@dataclass(frozen=True, slots=True)
class Place:
    """Where both tools run."""

    work: Path
    python: Path
    """Of LLaMA-Factory's environment"""

    def llamafactory(self, *arguments: str, log: str) -> None:
        """Run a module or script of LLaMA-Factory's environment."""
        self._run([str(self.python), *arguments], log, {"PYTHONPATH": ""})

    def triptych(self, *arguments: str, log: str) -> None:
        """Run a command of Triptych."""
        self._run([sys.executable, "-m", "triptych", *arguments], log, {})

    def _run(self, command: Sequence[str], log: str, environment: dict[str, str]) -> None:
        quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        caches = {"TRIPTYCH_CACHE": str(self.work / "cache"), "HF_HOME": str(self.work / "hf")}
        path = self.work / f"{log}.txt"
        with path.open("w", encoding="utf-8") as file:
            settings = {**os.environ, **quiet, **caches, **environment}
            ended = subprocess.run(command, cwd=self.work, env=settings, stdout=file, stderr=subprocess.STDOUT)
        if ended.returncode:
            raise SystemExit(f"{' '.join(command)} ended with status {ended.returncode}; see {path}")


def compare_losses(case: Case, place: Place) -> dict[str, Any]:
    """Losses of every step by both tools, on the same run file."""
    name = "".join(letter if letter.isalnum() else "_" for letter in case.name)
    file, theirs, ours = f"{name}.yaml", f"saves/{name}/llamafactory", f"saves/{name}/triptych"
    write(place.work / file, case.given, theirs)
    shutil.rmtree(place.work / "saves" / name, ignore_errors=True)
    place.llamafactory("-m", "llamafactory.cli", "train", file, log=f"{name}-llamafactory")
    place.triptych("train", file, f"output_dir={ours}", log=f"{name}-triptych")
    found = _losses(place.work / theirs / "trainer_log.jsonl"), _losses(place.work / ours / "log.jsonl")
    if not len(found[0]) == len(found[1]) == case.steps:
        raise SystemExit(f"{case.name}: {len(found[0])} and {len(found[1])} losses instead of {case.steps}")
    largest = max(abs(one - other) for one, other in zip(*found, strict=True))
    return {"case": case.name, "largest_difference": largest, "llamafactory": found[0], "triptych": found[1]}


def _losses(path: Path) -> list[float]:
    lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def compare_ids(learned: str, place: Place) -> dict[str, Any]:
    """Of how many of the 200 conversations ids and labels are equal."""
    name = f"ids_{learned.replace(' ', '_')}"
    file, found = place.work / f"{name}.yaml", place.work / f"{name}.jsonl"
    write(file, {**LABELS[learned], "dataset": "many"}, f"saves/{name}")
    place.llamafactory(str(DRIVER), file.name, str(found), log=name)
    theirs = [json.loads(line) for line in found.read_text(encoding="utf-8").splitlines()]
    ours = load_run(file).samples()
    if len(ours) != len(theirs):
        raise SystemExit(f"{learned}: {len(theirs)} and {len(ours)} samples")
    pairs = list(zip(theirs, (ours[number] for number in range(len(ours))), strict=True))
    return {
        "learned": learned,
        "conversations": len(pairs),
        "images": sum(len(sample.images) for _, sample in pairs),
        "same_ids": sum(line["input_ids"] == sample.input_ids.tolist() for line, sample in pairs),
        # Nothing predicts the first token, whatever its label says.
        "same_labels": sum(line["labels"][1:] == sample.labels.tolist()[1:] for line, sample in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, required=True, metavar="FILE", help="python of LLaMA-Factory's tools")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="folder for models, data and runs")
    parser.add_argument("--cases", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file that the result is appended to")
    arguments = parser.parse_args()
    place = Place(arguments.work.resolve(), arguments.python.absolute())
    write_all(place.work)
    os.chdir(place.work)
    os.environ["TRIPTYCH_CACHE"] = str(place.work / "cache")
    if not (place.work / ADAPTER / "adapter_config.json").exists():
        write(place.work / "make_adapter.yaml", MAKE_ADAPTER, ADAPTER)
        place.llamafactory("-m", "llamafactory.cli", "train", "make_adapter.yaml", log="make_adapter")
    ids, runs = [], []
    for learned in LABELS if arguments.cases is None else ():
        ids.append(compare_ids(learned, place))
        print(ids[-1], flush=True)
    for case in CASES:
        if arguments.cases is None or case.name in arguments.cases:
            runs.append(compare_losses(case, place))
            told = "the same" if runs[-1]["largest_difference"] <= ALLOWED else "NOT THE SAME"
            print(f"{case.name}: {runs[-1]['largest_difference']:.1e}, {told}", flush=True)
    tools = {"llamafactory": arguments.python.absolute().parents[1], "triptych": Path(sys.prefix)}
    found = {tool: versions(folder) for tool, folder in tools.items()}
    entry = {
        "commit": commit(),
        "versions": {tool: {name: all_of[name] for name in NAMED if name in all_of} for tool, all_of in found.items()},
        "ids": ids,
        "runs": runs,
    }
    arguments.out.parent.mkdir(exist_ok=True)
    with arguments.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


if __name__ == "__main__":
    main()
