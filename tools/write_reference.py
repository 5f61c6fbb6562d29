"""Write what follows from the code: the JSON Schema of run files, the table of settings, and LLaMA-Factory's keys."""

from __future__ import annotations

import typing
from pathlib import Path

from pydantic import BaseModel

from triptych.compat.llamafactory.keys.key import Key
from triptych.compat.llamafactory.keys.table import KEYS
from triptych.run.settings import RunSettings, json_schema

DOCS = Path(__file__).parent.parent / "docs"


def settings_table() -> str:
    """Markdown: every setting with its default and its sentence, group by group."""
    lines = [
        "# Settings",
        "",
        "Generated from `src/triptych/run/settings` by `make docs`. Any of them can be changed on the command line:",
        "`triptych train run.yaml train.epochs=3 data.max_pixels=401408`. Unknown names are refused.",
    ]
    for name, field in RunSettings.model_fields.items():
        if not _groups(field.annotation):
            lines += ["", f"## `{name}`", "", field.description or ""]
            continue
        for path, group in _walk(name, field.annotation):
            lines += ["", f"## `{path}`", "", "| setting | default | meaning |", "|---|---|---|"]
            for key, item in group.model_fields.items():
                default = "required" if item.is_required() else f"`{_plain(item.get_default())}`"
                lines.append(f"| `{key}` | {default} | {' '.join((item.description or '').split())} |")
    return "\n".join(lines) + "\n"


def _walk(path: str, annotation: object) -> list[tuple[str, type[BaseModel]]]:
    found = []
    for group in _groups(annotation):
        found.append((path, group))
        for key, field in group.model_fields.items():
            found += _walk(f"{path}.{key}", field.annotation)
    return found


def _groups(annotation: object) -> list[type[BaseModel]]:
    candidates = [annotation, *typing.get_args(annotation)]
    return [item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)]


def _plain(value: object) -> object:
    return "..." if isinstance(value, BaseModel) else value


FATES = {
    "becomes": ("What becomes a setting", "becomes"),
    "passed": ("What transformers is given", "becomes"),
    "refused": ("What is refused, since it would change what is learned", "why, or what instead"),
    "stage": ("What belongs to another stage, and is refused", "why"),
    "dropped": ("What is left out, and said", "why"),
    "after": ("What another command does", "which"),
    "unneeded": ("What has no effect here", "why"),
}
"""Fate of a key -> heading of its table, and of its second column."""


def llamafactory_table() -> str:
    """Markdown: what every key of a LLaMA-Factory run file becomes; keys that share a sentence share a row."""
    lines = [
        "# Every key of a LLaMA-Factory run file",
        "",
        "Generated from `src/triptych/compat/llamafactory/keys` by `make docs`. How to move a whole run: see",
        "[migrating](migrating.md). A default is LLaMA-Factory's; it holds where the file leaves the key out.",
    ]
    for fate, (heading, column) in FATES.items():
        rows: dict[str, list[str]] = {}
        for name, key in KEYS.items():
            if key.fate == fate:
                rows.setdefault(key.text, []).append(_named(name, key))
        lines += ["", f"## {heading}", "", f"| key, default | {column} |", "|---|---|"]
        lines += [f"| {', '.join(names)} | {text} |" for text, names in rows.items()]
    return "\n".join(lines) + "\n"


def _named(name: str, key: Key) -> str:
    if key.default in (None, [], ""):
        return f"`{name}`"
    default = str(key.default).lower() if isinstance(key.default, bool) else key.default
    return f"`{name}: {default}`"


def pages() -> dict[Path, str]:
    """File -> content of every generated page."""
    return {
        DOCS / "run.schema.json": json_schema(),
        DOCS / "settings.md": settings_table(),
        DOCS / "llamafactory-keys.md": llamafactory_table(),
    }


if __name__ == "__main__":
    for path, content in pages().items():
        path.write_text(content, encoding="utf-8")
        print(path.relative_to(DOCS.parent))
