"""``triptych examples``: the example run files that come with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from triptych.errors import ConfigError
from triptych.run.run_file import SCHEMA
from triptych.run.settings import json_schema
from triptych.terminal import Terminal

FOLDER = "examples"


def example_texts() -> dict[str, str]:
    """Name -> content of each example run file."""
    folder = files("triptych").joinpath("assets", FOLDER)
    found = {item.name: item.read_text(encoding="utf-8") for item in folder.iterdir() if item.name.endswith(".yaml")}
    return dict(sorted(found.items()))


def examples(to: Path | None) -> None:
    """List the examples; with ``to``, write them there with their schema.

    Raises:
        ConfigError: if one of them is there already.
    """
    out = Terminal()
    texts = example_texts()
    if to is None:
        for name, text in texts.items():
            about = next(
                (line[2:] for line in text.splitlines() if line.startswith("# ") and "$schema" not in line), ""
            )
            out.line(f"{name:<28} {about}")
        out.line("triptych examples --to DIR writes them")
        return
    to.mkdir(parents=True, exist_ok=True)
    there = [name for name in texts if (to / name).exists()]
    if there:
        raise ConfigError(f"{to / there[0]} exists already; choose another folder")
    for name, text in texts.items():
        (to / name).write_text(text, encoding="utf-8")
    (to / SCHEMA).write_text(json_schema(), encoding="utf-8")
    out.line(f"{len(texts)} run files and their schema are in {to}")
