"""The templates of what an export says: files of ``assets``, filled with values. Nothing is left open or invented."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

_ENVIRONMENT = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)


def fill(name: str, values: dict[str, Any]) -> str:
    """A template of ``assets``, by its path there, filled; a value that it names and that is not given is an error."""
    source = files("triptych").joinpath("assets", name).read_text(encoding="utf-8")
    return _ENVIRONMENT.from_string(source).render(values)
