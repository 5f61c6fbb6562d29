"""LLaMA-Factory's ``dataset_info.json``: each of its entries as the settings of a source, by the rules that hold there.

An entry names a file below the list's folder, its formatting, and by which keys and role names it is read. Once it has
``columns`` (or ``tags``), every one that it leaves out is none: the key of that name in a record is not read.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.errors import ConfigError
from triptych.sources import storage

FILE = "dataset_info.json"
KEYS = (
    *("file_name", "formatting", "columns", "tags", "num_samples", "ranking", "split", "subset", "folder"),
    *("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name"),
)
HUBS = ("hf_hub_url", "ms_hub_url", "om_hub_url")
FORMATTINGS = ("alpaca", "sharegpt", "openai")
COLUMNS: dict[str, str | None] = {
    **{"prompt": "instruction", "query": "input", "response": "output", "history": None, "messages": "conversations"},
    **{"system": None, "tools": None, "images": None, "videos": None, "audios": None},
    **{"chosen": None, "rejected": None, "kto_tag": None},
}
"""Names of columns -> the record's key where an entry has no ``columns`` at all."""
ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "history": "history"}
"""Names of columns there -> here."""
TAGS: dict[str, tuple[str, str]] = {
    "role_tag": ("role", "from"),
    "content_tag": ("content", "value"),
    "user_tag": ("user", "human"),
    "assistant_tag": ("assistant", "gpt"),
    "system_tag": ("system", "system"),
    "observation_tag": ("observation", "observation"),
    "function_tag": ("function", "function_call"),
}
"""Names of tags there -> here, and the default there."""
UNREAD: dict[str, tuple[str, ...]] = {
    "query": ("input",),
    "history": ("history",),
    "system": ("system",),
    "tools": ("tools", "functions"),
    "images": ("images", "image"),
    "videos": ("videos", "video"),
    "audios": ("audios", "audio"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
}
"""Columns -> the keys that Triptych would read or refuse by itself."""
DIALOGUES = ("messages", "conversations", "conversation")
ENDINGS = (".json", ".jsonl", ".csv", ".parquet", ".arrow")


@dataclass(frozen=True, slots=True)
class Listed:
    """What becomes of an entry."""

    source: dict[str, Any]
    """Settings of a source."""
    remote: bool = False
    """Whether it names a file behind a URL."""
    sampled: int | None = None
    """Samples that are drawn at random, where the entry says so."""


def entry_source(entries: Mapping[str, Any], name: str, place: str, folder: str | None = None) -> Listed:
    """The source of an entry.

    Args:
        entries: content of ``dataset_info.json``.
        name: of the entry.
        place: path of the file, for messages.
        folder: where the entries' files lie; None for the folder of the file.

    Raises:
        ConfigError: if there is no such entry, or it cannot be a source.
    """
    entry = entries.get(name)
    if entry is None:
        near = difflib.get_close_matches(name, entries, n=1, cutoff=0.5)
        known = ", ".join(list(entries)[:20]) or "none"
        raise ConfigError(
            f"{place} has no data set {name!r}" + (f"; did you mean {near[0]!r}?" if near else f"; it has {known}")
        )
    where = f"{place}, data set {name!r}"
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}: an entry is an object")
    _check_names(entry, where)
    path, remote = _files(entry, where, storage.parent(place) if folder is None else folder)
    columns, ignored = _columns(entry, where)
    source: dict[str, Any] = {"path": path}
    source |= {"columns": columns} if columns else {}
    tags = _tags(entry, where)
    source |= {"tags": tags} if tags else {}
    source |= {"ignore": ignored} if ignored else {}
    sampled = entry.get("num_samples")
    if sampled is not None:
        if not isinstance(sampled, int) or isinstance(sampled, bool) or sampled < 1:
            raise ConfigError(f"{where}: `num_samples` is a number of samples, this is {sampled!r}")
        source["max_samples"] = sampled
    return Listed(source, remote, sampled)


def _check_names(entry: Mapping[str, Any], where: str) -> None:
    """Refuse what is misspelt: a name that is not read would be lost. Names that are near nothing are notes."""
    formatting = entry.get("formatting", "alpaca")
    if formatting not in FORMATTINGS:
        raise ConfigError(f"{where}: `formatting` is {formatting!r}; it is one of {', '.join(FORMATTINGS)}")
    if entry.get("ranking"):
        raise ConfigError(f"{where}: `ranking: true` is preference data; Triptych does supervised fine-tuning")
    for group, given, known in (
        ("", entry, KEYS),
        ("columns.", entry.get("columns", {}), tuple(COLUMNS)),
        ("tags.", entry.get("tags", {}), tuple(TAGS)),
    ):
        if not isinstance(given, Mapping):
            raise ConfigError(f"{where}: `{group.rstrip('.')}` is an object of names")
        for key in given:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.75)
            if key not in known and near:
                raise ConfigError(f"{where}: unknown `{group}{key}`; did you mean `{near[0]}`?")


def _files(entry: Mapping[str, Any], where: str, folder: str) -> tuple[str | list[str], bool]:
    for hub in HUBS:
        if entry.get(hub):
            raise ConfigError(
                f"{where}: `{hub}` is a data set on a hub; download it (`hf download {entry[hub]} --repo-type dataset "
                "--local-dir DIR`) and name its files with `file_name`"
            )
    if entry.get("script_url"):
        raise ConfigError(f"{where}: `script_url` is a program, which is not run; write its records to a JSON file")
    if entry.get("split", "train") != "train":
        raise ConfigError(f"{where}: `split` is {entry['split']!r}; a file is read whole, write what you want to one")
    if entry.get("cloud_file_name"):
        return str(entry["cloud_file_name"]), True
    name = entry.get("file_name")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}: no `file_name`")
    path = name if Path(name).is_absolute() or folder in ("", ".") else f"{folder.rstrip('/')}/{name}"
    if storage.is_remote(path) or not Path(path).is_dir() or (Path(path) / "dataset_info.json").exists():
        return path, storage.is_remote(path)  # a saved ``datasets`` folder is one source
    files = sorted(str(file) for file in Path(path).iterdir() if file.is_file())
    endings = {next((end for end in ENDINGS if file.endswith(end)), Path(file).suffix) for file in files}
    if not files or len(endings) > 1 or not endings <= set(ENDINGS):
        found = ", ".join(sorted(endings)) or "no file"
        raise ConfigError(f"{where}: the folder {path} holds {found}; a folder holds files of one kind of {ENDINGS}")
    return files, False


def _columns(entry: Mapping[str, Any], where: str) -> tuple[dict[str, str], list[str]]:
    """Names of columns here, and the keys of records that are not read."""
    given = entry.get("columns")
    named = dict(COLUMNS) if given is None else {name: given.get(name) for name in COLUMNS}
    for name, key in named.items():
        if key is not None and not isinstance(key, str):
            raise ConfigError(f"{where}: `columns.{name}` is the name of a key, this is {key!r}")
    formatting = entry.get("formatting", "alpaca")
    columns = _alpaca(named, where) if formatting == "alpaca" else _dialogue(named, where)
    columns |= {name: key for name in ("system", "images", "tools") if (key := named[name])}
    for name in ("videos", "audios"):
        key = named[name]
        if key and key not in UNREAD[name]:
            raise ConfigError(f"{where}: `columns.{name}` is {key!r}: video and audio are not supported")
    read = {*columns.values(), *(key for name in ("videos", "audios") if (key := named[name]))}
    unread = [key for name, keys in UNREAD.items() for key in keys if key not in read]
    unread += [key for key in (*DIALOGUES, "objects") if key not in read]
    unread += [
        key for name in ("chosen", "rejected", "kto_tag") if (key := named[name]) and key not in (*unread, *read)
    ]
    kept = {name: key for name, key in columns.items() if name != key}
    return kept, unread


def _alpaca(named: Mapping[str, str | None], where: str) -> dict[str, str]:
    if named["response"] is None:
        raise ConfigError(f"{where}: `columns` names no `response`, so there is nothing to learn")
    found = {here: key for there, here in ALPACA.items() if (key := named[there])}
    if "instruction" not in found and "input" not in found:
        raise ConfigError(f"{where}: `columns` names neither `prompt` nor `query`")
    return found


def _dialogue(named: Mapping[str, str | None], where: str) -> dict[str, str]:
    if named["messages"] is None:
        raise ConfigError(f"{where}: `columns` names no `messages`, which hold the turns")
    return {"messages": named["messages"]}


def _tags(entry: Mapping[str, Any], where: str) -> dict[str, str]:
    """Names inside a turn where they are not those that Triptych knows by itself."""
    given = entry.get("tags")
    if entry.get("formatting", "alpaca") == "alpaca" or given is None:
        return {}
    for name in ("role_tag", "content_tag", "user_tag", "assistant_tag"):
        if not isinstance(given.get(name), str):
            raise ConfigError(f"{where}: `tags` names no `{name}`, without which no turn can be read")
    return {here: given[there] for there, (here, _) in TAGS.items() if given.get(there) and _is_own(here, given[there])}


def _is_own(tag: str, name: str) -> bool:
    known: Mapping[str, Sequence[str]] = {
        "role": ("role", "from"),
        "content": ("content", "value"),
        "user": ("user", "human"),
        "assistant": ("assistant", "gpt"),
        "system": ("system",),
        "observation": ("observation", "tool"),
        "function": ("function_call", "tool_call"),
    }
    return name not in known[tag]
