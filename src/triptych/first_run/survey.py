"""What a user's data is: the shape of its records, the names of its keys, and the folder of its images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from triptych.errors import ConfigError, Origin, Problem
from triptych.first_run.advice import advised, parsed
from triptych.sources import storage
from triptych.sources.readers import read_records
from triptych.sources.records import Record, Source
from triptych.text.conversation import Conversation

LOOKED_AT = 500
"""Records of the data that are read."""
FOLDERS = 2000
"""Folders below and above the data that are tried for the images."""
IMAGE_KEYS = (
    "images",
    "image",
    "image_path",
    "image_paths",
    "img",
    "imgs",
    "photos",
    "pictures",
    "image_list",
    "media",
)
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
HELD_OUT = ("val", "valid", "validation", "eval", "dev", "test")
USER = ("user", "human", "question", "usr", "q", "client", "customer")
ASSISTANT = ("assistant", "gpt", "bot", "answer", "model", "chatgpt", "a", "agent")


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found in the data."""

    shape: str
    """For people"""
    records: int
    """Looked at"""
    good: int
    """Of them, records that are read without a problem"""
    source: Source
    """With the columns, tags and the image folder that were found"""
    images: int
    """Relative image paths looked for"""
    found: int
    """Of them, those there are under the image folder"""
    remote: bool
    """Whether data or images are behind URLs"""
    problems: list[Problem] = field(default_factory=list)
    """Of the records looked at"""

    @property
    def hit_rate(self) -> float:
        """Share of the relative image paths that the image folder holds; 1 where there are none."""
        return self.found / self.images if self.images else 1.0


def survey(paths: Sequence[str], media_dir: str | None = None) -> Survey:
    """Look at the first records of the data.

    Args:
        paths: data files, globs or folders.
        media_dir: folder of the images, where the user says so.

    Raises:
        ConfigError: if no file is found, or no record is read whatever its keys are taken for.
    """
    remote = any(storage.is_remote(path) for path in paths)
    source = Source(paths[0] if len(paths) == 1 else tuple(paths), media_dir, allow_remote=remote)
    files = source.files()
    elements = list(islice(chain.from_iterable(map(read_records, files)), LOOKED_AT))
    records = [element for element in elements if isinstance(element, Record)]
    if not records:
        raise ConfigError(f"{files[0]!r} holds no records" + "".join(f"\n{element}" for element in elements[:3]))
    named, conversations, problems = _best_naming(source, records)
    if not conversations:
        shown = "\n".join(map(str, problems[:5]))
        raise ConfigError(f"none of the first {len(records)} records can be read, whatever their keys mean:\n{shown}")
    references = [ref.source for sample in conversations for ref in sample.images if ref.location is None]
    relative = list(dict.fromkeys(name for name in references if _is_relative(name)))
    folder = media_dir or _image_folder(relative, files[0])
    named = replace(named, media_dir=folder)
    root = named.media_root(files[0])
    found = sum(_there(root, name) for name in relative)
    remote = remote or any(storage.is_remote(name) for name in references)
    unreadable = [element for element in elements if isinstance(element, Problem)]
    return Survey(
        shape=_shape(records[0].data, named),
        records=len(elements),
        good=len(conversations),
        source=replace(named, allow_remote=remote),
        images=len(relative),
        found=found,
        remote=remote,
        problems=[*unreadable, *problems],
    )


def held_out(path: str) -> str | None:
    """A data file beside ``path`` that is named as held-out data is: ``train.json`` and ``val.json``."""
    if storage.is_remote(path):
        return None
    folder, name = os.path.split(path)
    stem, dot, ending = name.partition(".")
    for word in HELD_OUT:
        names = (stem.replace("train", word), word) if "train" in stem else (f"{stem}_{word}", f"{stem}-{word}", word)
        for candidate in names:
            other = os.path.join(folder, candidate + dot + ending)
            if candidate != stem and os.path.isfile(other):
                return other
    return None


def _best_naming(source: Source, records: Sequence[Record]) -> tuple[Source, list[Conversation], list[Problem]]:
    """The reading under which most records are good: that without any renaming first, at last what messages advise."""
    best: tuple[Source, list[Conversation], list[Problem]] | None = None
    for columns, tags in _namings(records):
        named = replace(source, columns=columns, tags=tags)
        good, problems = parsed(named, records)
        if best is None or len(good) > len(best[1]):
            best = named, good, problems
        if len(good) == len(records):
            return best
    assert best is not None
    more = advised(best[0], [record for record in records if record.origin in _places(best[2])])
    if more == best[0]:
        return best
    good, problems = parsed(more, records)
    return (more, good, problems) if len(good) > len(best[1]) else best


def _places(problems: Iterable[Problem]) -> set[Origin]:
    return {problem.origin for problem in problems}


def _namings(records: Sequence[Record]) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """Columns and tags to try."""
    yield {}, {}
    keys = Counter(key for record in records for key in record.data)
    first = {
        key: next(r.data[key] for r in records if r.data.get(key) is not None) for key in keys if _given(records, key)
    }
    dialogs = [key for key, value in first.items() if _is_dialog(value)]
    listed = [key for key, value in first.items() if key not in dialogs and _is_images(key, value)]
    for dialog in dialogs:
        tags = _tags(turn for record in records[:50] for turn in record.data.get(dialog) or ())
        column = {} if dialog in ("conversations", "messages") else {"conversations": dialog}
        others = [{"images": key} for key in listed if key not in ("images", "image")]
        for extra in others or [{}]:
            yield column | extra, tags
            yield column | extra, {}


def _given(records: Sequence[Record], key: str) -> bool:
    return any(record.data.get(key) is not None for record in records)


def _is_dialog(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, Mapping) for turn in value)
        and any(isinstance(content, str) for turn in value for content in turn.values())
    )


def _is_images(key: str, value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(item, str) for item in values):
        return False
    return key.lower() in IMAGE_KEYS or all(item.lower().endswith(ENDINGS) for item in values)


def _tags(turns: Iterable[Any]) -> dict[str, str]:
    """Names of role, content, user and assistant in some turns; those that need no renaming are left out."""
    turns = [turn for turn in turns if isinstance(turn, Mapping)]
    values: dict[str, list[Any]] = {}
    for turn in turns:
        for key, value in turn.items():
            values.setdefault(key, []).append(value)
    tags: dict[str, str] = {}
    for key, found in values.items():
        names = {value for value in found if isinstance(value, str)}
        users = [name for name in names if name.lower() in USER]
        assistants = [name for name in names if name.lower() in ASSISTANT]
        if len(names) <= 6 and users and assistants and "role" not in tags:
            tags |= {"role": key, "user": users[0], "assistant": assistants[0]}
    rest = [key for key in values if key != tags.get("role")]
    if tags and rest:
        tags["content"] = max(rest, key=lambda key: sum(len(str(value)) for value in values[key]))
    return tags


def _shape(data: Mapping[str, Any], source: Source) -> str:
    """What the records are called in the field."""
    if source.columns or source.tags:
        return "conversations under names of their own"
    if data.get("conversations") is not None:
        return (
            "LLaVA, Qwen (`conversations`, `image`)" if data.get("image") is not None else "ShareGPT (`conversations`)"
        )
    if data.get("messages") is not None:
        return "OpenAI (`messages`)"
    return "records with " + ", ".join(f"`{key}`" for key in list(data)[:4])


def _is_relative(name: str) -> bool:
    return not (storage.is_remote(name) or name.startswith(("data:", "file:")) or os.path.isabs(name))


def _there(root: str, name: str) -> bool:
    try:
        return os.path.isfile(os.path.join(root, name))
    except ValueError:  # a name with a zero byte
        return False


def _image_folder(names: Sequence[str], data_file: str) -> str | None:
    """The folder that holds most of ``names``; None where that is the folder of the data file."""
    if not names or storage.is_remote(data_file) or data_file.endswith(".tar"):
        return None
    tried = names[:100]
    own = os.path.dirname(data_file)
    best, most = None, sum(_there(own, name) for name in tried)
    if most == len(tried):
        return None
    for folder in islice(_folders(Path(own)), FOLDERS):
        hits = sum(_there(str(folder), name) for name in tried)
        if hits > most:
            best, most = str(folder), hits
        if most == len(tried):
            break
    return best


def _folders(own: Path) -> Iterator[Path]:
    """Folders where images may be: above the data, and below it and its parent, near ones first."""
    parents = [own / ".", *(own.absolute().parents[:2])]
    yield from (Path(os.path.relpath(folder)) for folder in parents)
    for top in parents[:2]:
        for depth in ("*", "*/*", "*/*/*"):
            yield from (Path(os.path.relpath(path)) for path in sorted(top.glob(depth)) if path.is_dir())
