"""The quickstart: write the data, the tiny base model and a run file, train, evaluate before and after, show."""

from __future__ import annotations

import shutil
import time
from importlib.resources import as_file, files
from pathlib import Path

from triptych.errors import ConfigError
from triptych.quickstart.dataset import write_base_dataset, write_dataset
from triptych.quickstart.scans import load_scans
from triptych.run import run_file
from triptych.run.prepare import prepare
from triptych.run.run_file import SCHEMA
from triptych.run.settings import RunSettings, json_schema
from triptych.terminal import Terminal

TRAIN_SAMPLES = 27_600
TEST_SAMPLES = 240
NAMING_SAMPLES = 100
SEED = 7
NAMING = "name"
"""The one task that the base model knows; the others are what the quickstart teaches."""
NEXT = """\
Your data next:
  triptych init --data train.json --model Qwen/Qwen3-VL-4B-Instruct --gpu 24GB"""


def run(out: Path) -> None:
    """Run the whole quickstart into ``out``.

    Raises:
        ConfigError: if ``out`` holds an earlier run.
    """
    began = time.monotonic()
    terminal = Terminal()
    written = write_files(out, terminal)
    settings = run_file.load(written)
    prepared = prepare(settings, ("train", "eval"), terminal)
    terminal.line("importing torch and transformers ...")
    from triptych.inference.evaluate import evaluate
    from triptych.training.train import train

    base = evaluate(settings, prepared, Path(settings.model.path), terminal).scores
    final = train(settings, prepared, terminal)
    tuned = evaluate(settings, prepared, final, terminal).scores
    tasks = [task for task in tuned if task not in (NAMING, "all")]
    rows = [(task, f"{base[task].exact_match:.1%}", f"{tuned[task].exact_match:.1%}") for task in (NAMING, *tasks)]
    means = [sum(scores[task].exact_match for task in tasks) / len(tasks) for scores in (base, tuned)]
    rows.append((f"mean of the {len(tasks)} tasks", f"{means[0]:.1%}", f"{means[1]:.1%}"))
    title = "Exact match on held-out scans"
    terminal.table(title, ("task", "base", "fine-tuned"), rows)
    _name_files(out, settings, final, terminal)
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    terminal.line(f"all of it took {minutes} min {seconds} s")
    terminal.line(NEXT)


def write_files(out: Path, terminal: Terminal) -> Path:
    """Write data, base model and run file into ``out``; returns the run file."""
    if (out / "run").exists():
        raise ConfigError(f"{out} holds an earlier quickstart; remove it, or choose another folder with --out")
    terminal.line(f"writing images of handwritten digits to {out / 'data'} ...")
    with terminal.bar("drawing scans", len(load_scans())) as advance:
        write_dataset(out / "data", train_samples=TRAIN_SAMPLES, test_samples=TEST_SAMPLES, seed=SEED, on_scan=advance)
    write_base_dataset(out / "naming", train_samples=0, test_samples=NAMING_SAMPLES, seed=SEED)
    assets = files("triptych").joinpath("assets")
    with as_file(assets.joinpath("tiny_base")) as base:
        shutil.copytree(base, out / "base", dirs_exist_ok=True)
    run_file = out / "run.yaml"
    run_file.write_text(assets.joinpath("examples", "quickstart.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    (out / SCHEMA).write_text(json_schema(), encoding="utf-8")
    return run_file


def _name_files(out: Path, settings: RunSettings, final: Path, terminal: Terminal) -> None:
    """What to look at, and how to go on."""
    output = Path(settings.output)
    evaluated = output / "eval"
    files = (
        ("answers, wrong ones first", evaluated / final.name / "index.html"),
        ("the same of the base model", evaluated / Path(settings.model.path).name / "index.html"),
        ("curves and answers over time", output / "report.html"),
        ("data in the shape yours has", out / "data" / "train.json"),
        ("run file to change and train", out / "run.yaml"),
        ("fine-tuned model, plain folder", final),
    )
    width = max(len(what) for what, _ in files)
    terminal.line("Look at:")
    for what, path in files:
        terminal.line(f"  {what:<{width}}  {path}")
