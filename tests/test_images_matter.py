"""Whether images matter, as the report of a run says it: on data of the quickstart, and with its images shuffled."""

from __future__ import annotations

import json
import shutil
from importlib.resources import as_file, files
from pathlib import Path
from random import Random

import pytest

from triptych.quickstart.dataset import write_base_dataset
from triptych.recovery.start import starting
from triptych.reports.live import DATA
from triptych.run.run_file import load
from triptych.terminal import Terminal
from triptych.training.train import train

RUN = """
model: {path: base, train: full}
data: {train: [{path: FILE}], eval: [{path: test.json}], workers: 0}
batch: {samples: 12}
train:
  epochs: null
  max_steps: STEPS
  learning_rate: 2e-3
  warmup: 10
  save_every: null
  eval_every: null
  show: {max_new_tokens: 12}
output: NAME
"""


def verdict(folder: Path, name: str, file: str, steps: int) -> str:
    """Train the quickstart's base model; returns what the report says of the images."""
    run = folder / f"{name}.yaml"
    run.write_text(RUN.replace("FILE", file).replace("STEPS", str(steps)).replace("NAME", name))
    out = Terminal()
    with starting(load(run), out) as (resolved, prepared, start):
        final = train(resolved, prepared, out, start=start)
    text = (final.parent / DATA).read_text(encoding="utf-8")
    return str(json.loads(text.removeprefix("liveReport(").removesuffix(");\n"))["verdict"])


@pytest.mark.slow
def test_images_matter_where_they_are_the_samples_own_and_not_where_they_are_shuffled(tmp_path: Path) -> None:
    write_base_dataset(tmp_path, train_samples=3_000, test_samples=60, seed=5)
    with as_file(files("triptych").joinpath("assets", "tiny_base")) as base:
        shutil.copytree(base, tmp_path / "base")
    records = json.loads((tmp_path / "train.json").read_text(encoding="utf-8"))
    single = [record for record in records if len(record["images"]) == 1]
    images = [record["images"] for record in single]
    Random(3).shuffle(images)
    shuffled = [record | {"images": other} for record, other in zip(single, images, strict=True)]
    for name, content in (("own.json", single), ("shuffled.json", shuffled)):
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    assert verdict(tmp_path, "own", "own.json", 20).startswith("The images matter: ")
    assert verdict(tmp_path, "shuffled", "shuffled.json", 200).startswith("The images do not seem to matter: ")
