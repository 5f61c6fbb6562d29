"""``triptych init``: a run file that fits the data, the model and the GPU, and what to do next."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from triptych.errors import ConfigError
from triptych.family.family import read_model_files
from triptych.family.recipe import Train
from triptych.first_run.choice import Choices, Wishes, choose
from triptych.first_run.survey import Survey, held_out, survey
from triptych.first_run.writing import reading, run_text
from triptych.run import run_file
from triptych.run.settings import json_schema
from triptych.terminal import Terminal

USUAL_MODEL = "Qwen/Qwen3-VL-4B-Instruct"
GPU_SIZE = "24GB"


@dataclass(frozen=True, slots=True)
class InitOptions:
    """What the user says; None where it is asked for or found out."""

    model: str | None = None
    media_dir: str | None = None
    eval: str | None = None
    gpu: str | None = None
    method: Train | None = None
    out: Path = Path("run.yaml")
    force: bool = False


def init(data: Sequence[str], options: InitOptions) -> int:
    """Look at the data, choose what fits, write the run file and say what comes next.

    Args:
        data: data files, globs or folders.
        options: what the user says beside.

    Returns:
        The exit status: 1 if samples have problems that stop a run.

    Raises:
        ConfigError: if the data cannot be read, the model is not named, or the run file exists already.
        ModelError: if the model folder cannot be used.
    """
    out = Terminal()
    if options.out.exists() and not options.force:
        raise ConfigError(f"{options.out} exists already; choose another name with --out, or overwrite it with --force")
    found = survey(data, options.media_dir)
    _say_data(out, data, found)
    model = options.model or _ask("model folder or hub name", USUAL_MODEL, "--model")
    files = read_model_files(model)
    if files.replaced is not None:
        out.line(files.replaced)
    evaluated = options.eval or (held_out(data[0]) if len(data) == 1 else None)
    if evaluated:
        out.line(f"held out: {evaluated}")
    gpu = options.gpu or _gpu_to_plan_for(out)
    choices, _, report = choose(model, files, found.source, Wishes(gpu, options.method), out)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    text = run_text(model, found, evaluated, choices, options.out.parent)
    options.out.write_text(text, encoding="utf-8")
    (options.out.parent / run_file.SCHEMA).write_text(json_schema(), encoding="utf-8")
    run_file.load(options.out)
    _say_choices(out, choices)
    for problem in report.problems[:5]:
        out.line(str(problem))
    if report.problems:
        out.line(
            f"{len(report.problems):,} problems in {report.samples:,} samples: `triptych check {options.out}`",
        )
    _say_next(out, options.out, evaluated is not None)
    return 1 if report.problems else 0


def _say_data(out: Terminal, data: Sequence[str], found: Survey) -> None:
    out.line(f"data:     {', '.join(data)}")
    out.line(f"shape:    {found.shape}; {found.good} of {found.records} records looked at are good")
    names = {**found.source.columns, **found.source.tags}
    if names:
        out.line("names:    " + ", ".join(f"{key} is `{value}`" for key, value in names.items()))
    for name, value, reason in reading(found.source):
        out.line(f"reading:  {name}: {value}  # {reason}")
    if found.images:
        folder = found.source.media_dir or "the folder of the data file"
        out.line(f"images:   {found.found} of {found.images} looked for are in {folder}")
        if not found.found:
            out.line("          name their folder with --media-dir")


def _gpu_to_plan_for(out: Terminal) -> str | None:
    """None where this machine has a GPU; else asked for."""
    import torch

    if torch.cuda.is_available():
        return None
    if sys.stdin.isatty():
        return str(typer.prompt("no GPU here; memory of the one you will train on", default=GPU_SIZE, err=True))
    out.line(f"gpu:      none here, so planned for {GPU_SIZE}; --gpu says another")
    return GPU_SIZE


def _ask(what: str, default: str, option: str) -> str:
    """Ask on a terminal.

    Raises:
        ConfigError: where nobody can be asked.
    """
    if not sys.stdin.isatty():
        raise ConfigError(f"give the {what} with {option}, for example {option} {default}")
    return str(typer.prompt(what, default=default, err=True))


def _say_choices(out: Terminal, choices: Choices) -> None:
    checkpointing = " with gradient checkpointing" if choices.checkpointing else ""
    out.line(f"method:   {choices.method}{checkpointing}")
    out.line(
        f"limits:   {choices.image_tokens:,} tokens per image, {choices.max_tokens:,} per sample, rows of "
        f"{choices.row_tokens:,}",
    )
    usable = choices.target.usable
    if usable is None:
        out.line(f"memory:   {choices.needed / 1e9:.1f} GB, estimated")
        return
    verdict = "fits" if choices.fits else "does NOT fit: `triptych plan` shows what each setting saves"
    out.line(f"memory:   {choices.needed / 1e9:.1f} of {usable / 1e9:.1f} GB, estimated: {verdict}")


def _say_next(out: Terminal, written: Path, evaluated: bool) -> None:
    steps = [
        (f"triptych plan {written}", "rows, steps, memory, time"),
        (f"triptych train {written}", "train"),
    ]
    if evaluated:
        steps.append((f"triptych eval {written}", "answer the held-out samples"))
    final = written.parent / "runs" / "first" / "final"
    steps.append((f"triptych chat {final} --image a.jpg", "ask it"))
    width = max(len(command) for command, _ in steps)
    out.line(f"written:  {written}")
    out.line("next:")
    for command, meaning in steps:
        out.line(f"  {command:<{width}}  # {meaning}")
