"""Is training with Triptych faster than with the tools that people use today, on the same work?

    python benchmarks/peers/compare.py --install ENVS                                 once: an environment for each
    python benchmarks/peers/compare.py --envs ENVS --tokenizer Qwen2-VL --work WORK [--cases ...] [--rounds 3]

Method: random Qwen2-VLs (models.py), tower and merger frozen, the language part trained in full in float32 by AdamW,
four samples per optimizer step, at most 4,096 tokens per sample. All tools train on the same samples in the same order
(samples.py) and run in turns, each run a process of its own with empty caches, in the ways of settings.py. Of each run:

    first step s   from starting the process until the first step's batches are there and the step begins
    s/step         mean over all steps but the first, from the end of one to the end of the next; median beside it
    superv./s      tokens with a loss per second of those steps; tokens/s: all that are no padding
    padding        share of the positions that hold no token
    data wait      share of the time between the end of a step and the beginning of the next
    peak GB        proportional set size of all processes of the run together, looked at four times a second

    start, steps   how many times as fast Triptych is by its defaults, until the first step and after it

The cases of training are the first epoch of the work in miniature: few samples over so few files that every image is
shown as often as where 1,000 samples share 400. In `proportioned` the whole epoch is timed, the first step as well,
since there Triptych fills its feature cache.

Every finished run is appended to WORK/runs.jsonl; --continue takes up a comparison that was interrupted.
A tool that did not train on the same targets and images in the same step is named under the table.
Result: one line of benchmarks/results/peers.jsonl with all runs, medians over the rounds and ratios within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # workload.py and feature_cache.py

from cases import CASES, Case, Place, run_case
from install import PEERS, install, versions
from settings import REFUSED, START, START_LLAMAFACTORY, STEPS, Variant
from summary import Run, disagreements, summarise, table

from workload import commit

RESULTS = Path(__file__).resolve().parents[1] / "results" / "peers.jsonl"
ENVIRONMENTS = {"triptych": "triptych", "llamafactory": "lf", "trl": "trl", "swift": "swift"}
LLAMAFACTORY_STARTS = 1000
"""More samples would take it minutes."""
LIMIT = 1800.0


def variants(case: Case) -> tuple[Variant, ...]:
    """The ways in which the tools run ``case``."""
    if case.name == "refused":
        return REFUSED
    if not case.start_only:
        return STEPS
    return (*START, *START_LLAMAFACTORY) if case.samples <= LLAMAFACTORY_STARTS else START


def compare(cases: list[Case], tools: list[str], rounds: int, place: Place, limit: float) -> list[Run]:
    """All runs, those in the log of ``place`` included; each new one is added there as it ends."""
    log = place.work / "runs.jsonl"
    runs: list[Run] = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {(run["case"], run["tool"], run["variant"], run["round"]) for run in runs}
    for case in cases:
        for number in range(rounds if case.name != "refused" else 1):
            for variant in variants(case):
                known = (case.name, variant.tool, variant.name, number) in done or (variant.once and number)
                if variant.tool not in tools or known:
                    continue
                run = {**run_case(case, variant, number, place, limit), "commit": commit(), "at": time.time()}
                runs.append(run)
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(run) + "\n")
                print(_line(run), flush=True)
    return runs


def _line(run: Run) -> str:
    name = f"{run['case']} {run['round']}: {run['tool']}, {run['variant']}"
    if "error" in run:
        return f"{name}: {run['error']}"
    took = [step["ended"] - step["began"] for step in run["steps"] if "ended" in step]
    steps = "; steps of " + " ".join(f"{each:.1f}" for each in took) + " s" if took else ""
    return f"{name}: first step after {run['start_seconds']:.1f} s{steps}"


def about(place: Place) -> dict[str, Any]:
    """Machine and versions."""
    wanted = ("torch", "transformers", "torchvision", "llamafactory", "trl", "ms-swift", "accelerate", "pillow")
    tools = {tool: versions(python.parents[1]) for tool, python in place.pythons.items()}
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "commit": commit(),
        "versions": {tool: {name: found[name] for name in wanted if name in found} for tool, found in tools.items()},
    }


def chosen(names: list[str]) -> list[Case]:
    """Cases by name; ``start`` is all that begin so."""
    return [
        case for case in CASES.values() if any(case.name == name or case.name.startswith(f"{name}-") for name in names)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", type=Path, metavar="DIR", help="make the tools' environments there, then end")
    parser.add_argument("--envs", type=Path, metavar="DIR", help="where they are")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="folder with Qwen2-VL's tokenizer.json")
    parser.add_argument("--work", type=Path, metavar="DIR", help="folder for models, data and the log of runs")
    parser.add_argument("--cases", nargs="+", default=["refused", "tiny", "proportioned", "start"], metavar="NAME")
    parser.add_argument("--tools", nargs="+", default=[*ENVIRONMENTS], metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="fewer steps in every case")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds after which a run is ended")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file that the result is appended to")
    parser.add_argument("--continue", dest="go_on", action="store_true", help="keep the runs that are in the log")
    arguments = parser.parse_args()
    if arguments.install:
        arguments.install.mkdir(parents=True, exist_ok=True)
        install(arguments.install)
        return
    if not (arguments.envs and arguments.tokenizer and arguments.work):
        parser.error("give --install DIR, or --envs, --tokenizer and --work")
    cases = chosen(arguments.cases)
    if not cases:
        parser.error(f"no such case; there are {', '.join(CASES)}")
    if arguments.steps:
        cases = [replace(case, steps=min(case.steps, arguments.steps)) for case in cases]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a run ends with this process
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if not arguments.go_on:
        (work / "runs.jsonl").unlink(missing_ok=True)
    pythons = {tool: arguments.envs.resolve() / name / "bin" / "python" for tool, name in ENVIRONMENTS.items()}
    place = Place(work, pythons, arguments.tokenizer.resolve())
    runs = compare(cases, arguments.tools, arguments.rounds, place, arguments.limit)
    report(cases, runs, place, arguments.out)


def report(cases: list[Case], runs: list[Run], place: Place, out: Path) -> None:
    """Print a table per case, and keep everything."""
    medians, apart = {}, {}
    for case in cases:
        its_runs = [run for run in runs if run["case"] == case.name]
        medians[case.name] = summarise(its_runs, whole_epoch=case.whole_epoch)
        apart[case.name] = disagreements(its_runs)
        print(table(case.name, medians[case.name]), *apart[case.name], sep="\nNOT THE SAME WORK: ")
    entry = {
        **about(place),
        "peers": PEERS,
        "cases": {case.name: asdict(case) for case in cases},
        "settings": {case.name: [asdict(variant) for variant in variants(case)] for case in cases},
        "medians": medians,
        "not_the_same_work": apart,
        "runs": [run for run in runs if run["case"] in medians],
    }
    out.parent.mkdir(exist_ok=True)
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


if __name__ == "__main__":
    main()
