"""Does a model that shares learn as well, where four questions are asked about one set of images, and in less time?

Method: the quickstart's base model, scans and run file; sets of four images of handwritten digits, each asked about by
four samples (what is on image A, B, C, D; the answer names all four first), 2,000 sets, one epoch; 240 held-out samples
of other scans. Each seed trains once with `batch.share: off` and once with `on`: rows and steps hold as many samples,
but samples of one set share a step. Scores are exact matches with a 95% bootstrap interval; seconds are those of
training, from the first step to the last, in turn on the same machine.

    python benchmarks/share_learning.py

takes a quarter of an hour on two cores. Result: benchmarks/results/share_learning.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from importlib.resources import as_file, files
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import yaml

from triptych.inference.evaluate import evaluate
from triptych.quickstart.dataset import _write_album, write_json_lines
from triptych.quickstart.scans import split_scans
from triptych.quickstart.tasks import LABELS, Album
from triptych.run.prepare import prepare
from triptych.run.settings import RunSettings
from triptych.terminal import Terminal
from triptych.training.train import train
from workload import commit

RESULTS = Path(__file__).parent / "results" / "share_learning.jsonl"
SETS, TEST_SAMPLES, IMAGES, VIEWS = 2000, 240, 4, 4
RESAMPLES = 2000


def write_sets(folder: Path, seed: int) -> None:
    """``train.json`` and ``test.json``; they share no scan."""
    for part, scans, sets in zip(("train", "test"), split_scans(), (SETS, TEST_SAMPLES // IMAGES), strict=True):
        random = Random(f"{seed} {part}")
        album = _write_album(folder / "images" / part, scans, VIEWS, random, lambda _: None)
        records = [record for number in range(sets) for record in _set(album, random, folder, f"{part}-{number}")]
        write_json_lines(folder / f"{part}.json", records)


def _set(album: Album, random: Random, folder: Path, name: str) -> list[dict[str, object]]:
    digits = [random.randrange(10) for _ in range(IMAGES)]
    images = [album.image(digit, random).path.relative_to(folder).as_posix() for digit in digits]
    listing = "".join(f"{label}: <image>\n" for label in LABELS[:IMAGES])
    read = ", ".join(f"{label} {digit}" for label, digit in zip(LABELS, digits, strict=False))
    return [
        {
            "id": f"{name}-{label}",
            "conversations": [
                {"from": "human", "value": f"{listing}What is in picture {label}?"},
                {"from": "gpt", "value": f"{read}: {label} is {digit}."},
            ],
            "images": images,
        }
        for label, digit in zip(LABELS, digits, strict=False)
    ]


def run(folder: Path, seed: int, share: str) -> dict[str, Any]:
    """Train and score once."""
    asset = files("triptych").joinpath("assets", "examples", "quickstart.yaml")
    content = yaml.safe_load(asset.read_text(encoding="utf-8"))
    content["model"]["path"] = str(folder / "base")
    for split in ("train", "eval"):
        content["data"][split] = [{"path": str(folder / f"{'train' if split == 'train' else 'test'}.json")}]
    content["batch"]["share"] = share
    content["train"] |= {"epochs": 1, "seed": seed, "save_every": "epoch"}
    content["output"] = str(folder / f"run-{seed}-{share}")
    settings = RunSettings.model_validate(content)
    prepared = prepare(settings, ("train", "eval"), Terminal())
    final = train(settings, prepared, Terminal())
    summary = json.loads((Path(settings.output) / "summary.json").read_text(encoding="utf-8"))
    exact = [prediction.match for prediction in evaluate(settings, prepared, final, Terminal()).predictions]
    low, high = interval(exact, seed)
    return {
        "seed": seed,
        "share": share,
        "exact_match": float(np.mean(exact)),
        "interval": [low, high],
        "eval_loss": summary["last_eval_loss"],
        "train_seconds": summary["seconds"],
        "steps": summary["steps"],
    }


def interval(exact: list[bool], seed: int) -> tuple[float, float]:
    """95% bootstrap interval of the mean (Efron 1979)."""
    drawn = np.random.default_rng(seed).integers(0, len(exact), (RESAMPLES, len(exact)))
    low, high = np.quantile(np.array(exact)[drawn].mean(1), (0.025, 0.975))
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train with and without sharing, and compare scores and time.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TRIPTYCH_CACHE"] = str(folder / "cache")
        with as_file(files("triptych").joinpath("assets", "tiny_base")) as base:
            shutil.copytree(base, folder / "base")
        write_sets(folder, seed=0)
        lines = []
        for seed in options.seeds:
            for share in ("off", "on"):
                lines.append(run(folder, seed, share))
                print(json.dumps(lines[-1]), flush=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"commit": commit(), "lines": lines}) + "\n")


if __name__ == "__main__":
    main()
