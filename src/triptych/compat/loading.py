"""Open a run file of Triptych's own or of another tool: settings, and what there is to say about the translation."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triptych.compat import other_tools, values
from triptych.compat.llamafactory import read as llamafactory
from triptych.compat.notes import Notes
from triptych.errors import ConfigError
from triptych.run import run_file
from triptych.run.prepare import is_main_process
from triptych.run.reporter import Reporter
from triptych.run.settings import RunSettings

NATIVE = ("model", "data", "batch", "train", "eval", "output")
"""What overrides of a native run file begin with."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A run file that has been read."""

    settings: RunSettings
    overrides: tuple[str, ...] = ()
    """Those that are settings of Triptych"""
    tool: str | None = None
    """The tool whose file it is; None for Triptych itself"""
    notes: Notes = field(default_factory=Notes)
    goes_on: bool = False
    """Whether the run goes on by itself from a checkpoint in its output folder"""
    content: Mapping[str, Any] = field(default_factory=dict)
    """The settings that are not left to their defaults, of a file that was translated"""

    def said(self, path: str | Path) -> str:
        """What someone who brings the file should know; empty for Triptych's own."""
        if self.tool is None:
            return ""
        head = f"{path} is a run file of {self.tool}; as Triptych's own: triptych convert {path} --to run.yaml"
        return "\n".join(part for part in (head, self.notes.text()) if part)


def open_for(path: str | Path, overrides: Sequence[str], out: Reporter) -> Opened:
    """``open_run`` for a command: what there is to say about a translation is shown once, whatever the number of ranks.

    Raises:
        ConfigError: see ``open_run``.
    """
    opened = open_run(path, overrides)
    said = opened.said(path)
    if said and is_main_process():
        out.line(said)
    return opened


def open_run(path: str | Path, overrides: Sequence[str] = ()) -> Opened:
    """Read a run file and apply ``key=value`` overrides, in the names of its tool or of Triptych's settings.

    Raises:
        ConfigError: naming the file, the line and the key; a subclass of ``llamafactory.checks`` says which kind.
    """
    content = run_file.read(path)
    if llamafactory.recognised(content):
        return _llamafactory(path, content, overrides)
    other = other_tools.advice(content)
    if other is not None:
        raise ConfigError(f"{path}: {other}")
    return Opened(run_file.load(path, overrides), tuple(overrides))


def to_yaml(opened: Opened) -> str:
    """The native run file: what the file sets, and the defaults of its tool; paths are absolute.

    Raises:
        ConfigError: for a native run file, which needs no translation.
    """
    if opened.tool is None:
        raise ConfigError("this is a run file of Triptych's own already")
    content = dict(opened.content)
    for override in opened.overrides:
        run_file.override(content, override)
    return run_file.dumped(run_file.absolute_paths(content))


def _llamafactory(path: str | Path, content: Mapping[str, Any], overrides: Sequence[str]) -> Opened:
    theirs = [override for override in overrides if override.partition("=")[0].partition(".")[0] not in NATIVE]
    ours = tuple(override for override in overrides if override not in theirs)
    try:
        given = values.resolved(values.with_overrides(content, theirs))
        translation = llamafactory.read(given, int(os.environ.get("WORLD_SIZE", "1")))
    except ConfigError as error:
        raise type(error)(_placed(str(error), path)) from error
    wanted = llamafactory.resume_from(given)
    if wanted not in (None, "last"):
        translation.notes.must_do.append(
            f"`resume_from_checkpoint: {wanted}`: a run goes on from the last checkpoint of its output folder only"
        )
    settings = run_file.from_mapping(translation.settings, ours, str(path))
    goes_on = translation.goes_on or wanted is not None
    return Opened(settings, ours, "LLaMA-Factory", translation.notes, goes_on, translation.settings)


def _placed(message: str, path: str | Path) -> str:
    """A message of several lines, each with the file, and the line in it of the key that it begins with."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return "\n".join(_with_line(line, path, lines) for line in message.splitlines())


def _with_line(line: str, path: str | Path, content: Sequence[str]) -> str:
    found = re.search(r"`(\w+)", line)
    if found is None:
        return f"{path}: {line}"
    key = re.compile(rf"\s*[\"']?{re.escape(found[1])}[\"']?\s*:")
    number = next((number for number, text in enumerate(content, 1) if key.match(text)), None)
    return f"{path}: {line}" if number is None else f"{path}:{number}: {line}"
