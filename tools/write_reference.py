"""Write what follows from the code: the JSON Schema of run files, tables of settings and of LLaMA-Factory's keys."""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from triptych.compat.llamafactory.keys.key import Key
from triptych.compat.llamafactory.keys.table import KEYS
from triptych.run.settings import RunSettings, json_schema

DOCS = Path(__file__).parent.parent / "docs"
SENTENCES = Path(__file__).with_name("settings_zh.json")
"""English sentence of a setting -> Chinese; one that changed is shown in English until it is translated again"""


@dataclass(frozen=True, kw_only=True)
class Words:
    """What the generated pages say in one language."""

    settings_start: tuple[str, ...]
    settings_header: str
    required: str
    keys_start: tuple[str, ...]
    key_header: str
    fates: Mapping[str, tuple[str, str]]
    """Fate of a key -> heading of its table, and of its second column"""
    sentences: Mapping[str, str]

    def sentence(self, english: str | None) -> str:
        plain = " ".join((english or "").split())
        return self.sentences.get(plain, plain)


ENGLISH = Words(
    settings_start=(
        "# Settings",
        "",
        "Generated from `src/triptych/run/settings` by `make docs`. Any of them can be changed on the command line:",
        "`triptych train run.yaml train.epochs=3 data.max_pixels=401408`. Unknown names are refused.",
    ),
    settings_header="| setting | default | meaning |",
    required="required",
    keys_start=(
        "# Every key of a LLaMA-Factory run file",
        "",
        "Generated from `src/triptych/compat/llamafactory/keys` by `make docs`. How to move a whole run: see",
        "[migrating](migrating.md). A default is LLaMA-Factory's; it holds where the file leaves the key out.",
    ),
    key_header="key, default",
    fates={
        "becomes": ("What becomes a setting", "becomes"),
        "passed": ("What transformers is given", "becomes"),
        "refused": ("What is refused, since it would change what is learned", "why, or what instead"),
        "stage": ("What belongs to another stage, and is refused", "why"),
        "dropped": ("What is left out, and said", "why"),
        "after": ("What another command does", "which"),
        "unneeded": ("What has no effect here", "why"),
    },
    sentences={},
)
CHINESE = Words(
    settings_start=(
        "# 全部设置",
        "",
        "由 `make docs` 根据 `src/triptych/run/settings` 生成。每一项都可以在命令行上修改：",
        "`triptych train run.yaml train.epochs=3 data.max_pixels=401408`。",
        "不认识的名字会被拒绝。还没有译文的说明保留英文。",
    ),
    settings_header="| 设置 | 默认值 | 含义 |",
    required="必填",
    keys_start=(
        "# LLaMA-Factory 运行文件的每一个键",
        "",
        "由 `make docs` 根据 `src/triptych/compat/llamafactory/keys` 生成，各行的说明是代码中的英文原文。",
        "怎样迁移整个训练，见[迁移](migrating.zh-CN.md)。默认值是 LLaMA-Factory 的，文件里没有写这个键时就用它。",
    ),
    key_header="键，默认值",
    fates={
        "becomes": ("变成设置的", "变成"),
        "passed": ("交给 transformers 的", "变成"),
        "refused": ("会改变所学内容，因此拒绝的", "原因，或代替的写法"),
        "stage": ("属于其他阶段，因此拒绝的", "原因"),
        "dropped": ("不采用，并会说明的", "原因"),
        "after": ("由其他命令完成的", "哪个命令"),
        "unneeded": ("在这里没有作用的", "原因"),
    },
    sentences=json.loads(SENTENCES.read_text(encoding="utf-8")),
)


def settings_table(words: Words) -> str:
    """Markdown: every setting with its default and its sentence, group by group."""
    lines = list(words.settings_start)
    for name, field in RunSettings.model_fields.items():
        if not _groups(field.annotation):
            lines += ["", f"## `{name}`", "", words.sentence(field.description)]
            continue
        for path, group in _walk(name, field.annotation):
            lines += ["", f"## `{path}`", "", words.settings_header, "|---|---|---|"]
            for key, item in group.model_fields.items():
                default = words.required if item.is_required() else f"`{_plain(item.get_default())}`"
                lines.append(f"| `{key}` | {default} | {words.sentence(item.description)} |")
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
    if isinstance(value, BaseModel):
        return "..."
    return '""' if value == "" else value


def llamafactory_table(words: Words) -> str:
    """Markdown: what every key of a LLaMA-Factory run file becomes; keys that share a sentence share a row."""
    lines = list(words.keys_start)
    for fate, (heading, column) in words.fates.items():
        rows: dict[str, list[str]] = {}
        for name, key in KEYS.items():
            if key.fate == fate:
                rows.setdefault(key.text, []).append(_named(name, key))
        lines += ["", f"## {heading}", "", f"| {words.key_header} | {column} |", "|---|---|"]
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
        DOCS / "settings.md": settings_table(ENGLISH),
        DOCS / "settings.zh-CN.md": settings_table(CHINESE),
        DOCS / "llamafactory-keys.md": llamafactory_table(ENGLISH),
        DOCS / "llamafactory-keys.zh-CN.md": llamafactory_table(CHINESE),
    }


if __name__ == "__main__":
    for path, content in pages().items():
        path.write_text(content, encoding="utf-8")
        print(path.relative_to(DOCS.parent))
