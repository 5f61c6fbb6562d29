"""The run file as a user reads it: every choice with its reason beside it."""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from triptych.first_run.choice import Choices, workers
from triptych.first_run.survey import Survey
from triptych.run.run_file import SCHEMA
from triptych.sources import storage
from triptych.sources.records import Source

NOTES = 33
"""Column of the reasons."""


def run_text(model: str, survey: Survey, held_out: str | None, choices: Choices, folder: Path) -> str:
    """A commented run file.

    Args:
        model: folder or hub name.
        survey: what the data is.
        held_out: data file to evaluate on, if there is one.
        choices: method, limits and batch.
        folder: that the run file will be in, which its relative paths start from.
    """
    source = survey.source
    lines = [
        f"# yaml-language-server: $schema={SCHEMA}",
        f"# {choices.samples:,} samples, {survey.shape}; made by `triptych init` for {choices.target.name}.",
        "# Relative paths start from the folder of this file. Every setting has its sentence in the schema beside it.",
        "model:",
        f"  path: {_plain(_model(model, folder))}",
        *_method_lines(choices),
        "data:",
        "  train:",
        *_source_lines(source, source.path, folder),
    ]
    if held_out is None:
        lines.append(_noted("  # eval: [{path: val.json}]", "held-out samples: evaluation loss, and `triptych eval`"))
    else:
        lines += ["  eval:", *_source_lines(source, held_out, folder)]
    lines += _limit_lines(survey, choices)
    lines += [
        _noted(f"  workers: {workers()}", "processes that decode images"),
        _noted(f"batch: {{tokens: {choices.row_tokens}}}", "a row; samples are packed into it without padding"),
        *_train_lines(choices),
        "output: runs/first",
    ]
    return "\n".join(lines) + "\n"


def _method_lines(choices: Choices) -> list[str]:
    if choices.method == "full":
        return [_noted("  train: full", "all weights; `lora` needs a fraction of the memory")]
    reason = "adapters beside 4-bit weights" if choices.method == "qlora" else "adapters beside frozen weights"
    return [
        _noted(f"  train: {choices.method}", f"{reason}; `full` trains the weights themselves"),
        _noted("  freeze: [vision, merger]", "leave out if your images look like nothing the model has seen"),
        _noted("  lora: {rank: 16, alpha: 32}", "a higher rank for more, or stranger, data"),
    ]


def _source_lines(source: Source, path: str | tuple[str, ...], folder: Path) -> list[str]:
    """One source of the run file."""
    paths = [_relative(item, folder) for item in ((path,) if isinstance(path, str) else path)]
    lines = [f"    - path: {_plain(paths[0] if len(paths) == 1 else paths)}"]
    if source.media_dir is not None:
        lines.append(f"      media_dir: {_plain(_relative(source.media_dir, folder))}")
    if source.columns:
        lines.append(f"      columns: {_plain(dict(source.columns))}")
    if source.tags:
        lines.append(f"      tags: {_plain(dict(source.tags))}")
    return lines + [_noted(f"      {name}: {value}", why) for name, value, why in reading(source)]


def reading(source: Source) -> list[tuple[str, str, str]]:
    """How the records are read, where it is not the usual way: (setting, its value as YAML, reason)."""
    found: list[tuple[str, object, str]] = []
    if source.mark != "<image>":
        found.append(("mark", source.mark, "stands for an image in the texts"))
    if source.marks != "inline":
        found.append(("marks", source.marks, "no marks: images come before the question"))
    if source.roles != "alternate":
        found.append(("roles", source.roles, "turns of one role in a row are joined"))
    if source.choice is not None:
        found.append(("choice", dict(source.choice), "options go into the question"))
    return [(name, _plain(value), why) for name, value, why in found]


def _limit_lines(survey: Survey, choices: Choices) -> list[str]:
    lines = []
    if choices.max_pixels is not None:
        lines.append(_noted(f"  max_pixels: {choices.max_pixels}", f"of one image: {choices.image_tokens:,} tokens"))
    about = f"of one sample; the longest has {choices.longest:,}; images shrink to it"
    lines.append(_noted(f"  max_tokens: {choices.max_tokens}", about))
    if survey.remote:
        lines.append(_noted("  allow_remote: true", "data or images are behind URLs"))
    if survey.problems:
        lines.append(_noted("  # on_error: skip", "train on the good samples; `triptych check` lists the others"))
    return lines


def _train_lines(choices: Choices) -> list[str]:
    per_step = choices.rows_per_step * max(1, round(choices.row_tokens / max(1.0, choices.mean)))
    lines = [
        "train:",
        f"  epochs: {choices.epochs}",
        _noted(f"  learning_rate: {choices.rate:.0e}".replace("e-0", "e-"), "the usual one of this method"),
        _noted(f"  rows_per_step: {choices.rows_per_step}", f"about {per_step} samples to an optimizer step"),
    ]
    if choices.checkpointing:
        lines.append(_noted("  gradient_checkpointing: true", "less memory for a third more time"))
    return lines


def _noted(line: str, note: str) -> str:
    """A line with its reason after it, in a column of its own."""
    return f"{line:<{NOTES}} # {note}"


def _model(model: str, folder: Path) -> str:
    return _relative(model, folder) if os.path.isdir(model) else model


def _relative(path: str, folder: Path) -> str:
    """``path`` as seen from ``folder`` where it is below it or beside it, else absolute."""
    if storage.is_remote(path):
        return path
    seen = os.path.relpath(path, folder)
    return os.path.abspath(path) if seen.startswith(os.path.join("..", "..")) else seen


def _plain(value: object) -> str:
    """A value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")
