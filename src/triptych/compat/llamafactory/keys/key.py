"""One row of the table: a key of LLaMA-Factory, its default there, and what becomes of it here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Fate = Literal["becomes", "passed", "unneeded", "dropped", "refused", "stage", "after"]
"""``becomes``: settings of Triptych follow from it. ``passed``: goes to ``train.hf`` under its name. ``unneeded``: has
no effect on a run here, nothing is said. ``dropped``: had an effect there that does not change what is learned; it is
said.
``refused``: changes what is learned, and is not there. ``stage``: belongs to another stage than ``sft``. ``after``:
belongs to a command after training; that command is named."""
Kind = Literal["text", "flag", "whole", "number", "names", "any"]


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of one key."""

    fate: Fate
    default: Any
    text: str
    """What it becomes, or why it is refused or left out; a line of docs/llamafactory-keys.md and of messages."""
    kind: Kind


Rows = dict[str, Key]


def becomes(text: str, default: Any = None, kind: Kind | None = None) -> Key:
    """A key that settings follow from."""
    return Key("becomes", default, text, kind or _kind(default))


def passed(default: Any = None, kind: Kind | None = None) -> Key:
    """A key that transformers reads."""
    return Key("passed", default, "`train.hf`, as transformers reads it", kind or _kind(default))


def group(fate: Fate, text: str, **defaults: Any) -> Rows:
    """Keys that share a fate and a sentence; their values are not read, so any type will do."""
    return {name: Key(fate, default, text, _kind(default)) for name, default in defaults.items()}


def _kind(default: Any) -> Kind:
    if isinstance(default, bool):
        return "flag"
    if isinstance(default, int):
        return "whole"
    if isinstance(default, float):
        return "number"
    return "text" if isinstance(default, str) else "any"
