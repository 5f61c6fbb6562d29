"""Sources, records and shards: which files a run reads, and in which pieces."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any, Literal

from triptych.errors import ConfigError, Origin, Problem
from triptych.sources import saved_folder, storage

Kind = Literal["json", "csv", "parquet", "arrow", "tar"]
KINDS: dict[str, Kind] = {
    **{".json": "json", ".jsonl": "json", ".ndjson": "json", ".csv": "csv", ".tsv": "csv"},
    **{".parquet": "parquet", ".arrow": "arrow", ".tar": "tar"},
}
"""By the ending of a data file, upper or lower case."""
Marks = Literal["inline", "first", "auto"]
RoleRule = Literal["alternate", "merge", "keep"]
Supervise = Literal["answers", "last", "all", "everything"]
COLUMNS = (
    *(
        "messages",
        "conversations",
        "conversation",
        "images",
        "image",
        "system",
        "task",
        "weight",
        "texts",
        "prompt",
        "completion",
    ),
    *("query", "response", "history", "question", "answer", "instruction", "input", "output", "tools"),
)
"""What ``columns`` may name."""
TAGS = ("role", "content", "images", "system", "user", "assistant", "observation", "function")
CHOICE = ("question", "options", "answer", "letters", "instruction")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""Endings of compressed text files, with pyarrow's names of the compressions."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What a source or a record asks of the size of an image, instead of the run; 0 where it asks nothing."""

    min_pixels: int = 0
    max_pixels: int = 0
    height: int = 0
    """With ``width``, the size itself, px, before it is rounded to whole tokens"""
    width: int = 0

    def over(self, wider: ImageLimits | None) -> ImageLimits:
        """These, and those of a wider place where these ask nothing."""
        if wider is None:
            return self
        return ImageLimits(*(own or other for own, other in zip(astuple(self), astuple(wider), strict=True)))


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where the bytes of one image are."""

    source: str
    """As the data names it: a path (absolute, or relative to the source's ``media_dir``), a URL, a data URI."""
    location: str | None = None
    """Where a reader has found it already, in the form that ``measure.open_bytes`` takes: inside a Parquet file, a
    tar, ..."""
    limits: ImageLimits | None = None
    """What the record asks of its size"""


@dataclass(frozen=True, slots=True)
class Foreign:
    """A cell of a table that JSON has no form for, or that cannot be read; who needs it says what it is."""

    kind: str
    """What it is, with its article."""
    pixels: bool = False
    """Whether it may be the pixels of an image."""


@dataclass(frozen=True, slots=True)
class Record:
    """One element of a data file, as found."""

    data: dict[str, Any]
    origin: Origin


@dataclass(frozen=True, slots=True)
class Source:
    """One or more data files that share an image folder and a naming of their keys."""

    path: str | tuple[str, ...]
    """A file, a saved ``datasets`` folder, a URL, a glob, or several of them."""
    media_dir: str | None = None
    """Folder, tar file or URL that relative image paths start from; None means the folder of each data file."""
    confine: bool = False
    """Refuse images that lie outside ``media_dir`` (code ``image-outside``)."""
    columns: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    """Names of the record's keys where they differ: ``{"conversations": "dialog", "images": "photos"}``; ``images`` may
    be a list of keys or a pattern, ``"image_{n}"``."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Names inside a turn where they differ: ``{"role": "speaker", "content": "text", "user": "U"}``."""
    allow_remote: bool = False
    """Read data files and images behind URLs; without it the network is not touched."""
    mark: str = "<image>"
    """What stands for an image in a text; ``{n}`` in it is the image's number: ``"<image_{n}>"``."""
    marks: Marks = "inline"
    """Where images belong: at their marks, all before the first question, or there where a record has no mark."""
    roles: RoleRule = "alternate"
    """Turns of one role in a row: an error, joined by a line break, or kept as they are."""
    choice: Mapping[str, Any] | None = None
    """Read multiple choice: keys of ``question``, ``options`` and ``answer``, and ``letters`` and ``instruction``."""
    ignore: Sequence[str] = ()
    """Keys of records, turns and parts that are left out on purpose, though they hold something."""
    supervise: Supervise = "answers"
    """What is learned: every answer, the last one, or all text."""
    system: str | None = None
    """System prompt of records that have none."""
    limits: ImageLimits | None = None
    """What it asks of the size of its images; None for what the run asks."""
    loss_weight: float = 1.0
    """How much its samples count in the loss; the weights in its records are multiplied by it."""
    allow_private: bool = False
    """Let records name URLs of this machine and of private networks; the data's own hosts are always read."""

    def __post_init__(self) -> None:
        """
        Raises:
            ConfigError: for a name of ``columns``, ``tags`` or ``choice`` that nothing is called by.
        """
        for setting, given, known in (
            ("columns", self.columns, COLUMNS),
            ("tags", self.tags, TAGS),
            ("choice", self.choice or {}, CHOICE),
        ):
            for name in given:
                if name not in known:
                    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
                    meant = f"; did you mean `{near[0]}`?" if near else "."
                    raise ConfigError(f"`{setting}` has no name `{name}`{meant} The names are {', '.join(known)}")
        for name, key in self.columns.items():
            if not isinstance(key, str) and name != "images":
                raise ConfigError(f"`columns`: `{name}` is one key; only `images` may be a list of them")
            if not key:
                raise ConfigError(f"`columns`: `{name}` names no key")
        if not self.mark:
            raise ConfigError("`mark` is empty; it is what stands for an image in a text")

    def files(self) -> list[str]:
        """The data files in a stable order, each once; a ``datasets`` folder stands for its Arrow files.

        Raises:
            ConfigError: if a path or glob matches nothing, or a file has an extension that is not read.
        """
        patterns = (self.path,) if isinstance(self.path, str) else self.path
        files: dict[str, None] = {}
        for pattern in patterns:
            if storage.is_remote(pattern) and not self.allow_remote:
                raise ConfigError(f"{pattern!r} is remote; set data.allow_remote: true (--allow-remote) to read it")
            found = storage.matching(pattern)
            if not found:
                raise ConfigError(f"no data file matches {pattern!r}")
            for name in found:
                for file in _expand_folder(name):
                    kind_of(file)
                    try:
                        storage.absolute(file).encode()
                    except UnicodeEncodeError as error:
                        raise ConfigError(f"{file!r}: the name is not UTF-8; rename the file or its folder") from error
                    files[file] = None
        return list(files)

    def media_root(self, data_file: str) -> str:
        """Where the relative image paths of ``data_file`` start from: its folder, or its members if it is a tar."""
        if self.media_dir is not None:
            return self.media_dir
        return data_file if data_file.lower().endswith(".tar") else storage.parent(data_file)


def kind_of(path: str) -> Kind:
    """How a data file is read, by its name.

    Raises:
        ConfigError: for a name with another ending.
    """
    name, compression = split_compression(path)
    for ending, kind in KINDS.items():
        if name.lower().endswith(ending):
            if compression and kind not in ("json", "csv"):
                raise ConfigError(f"{path!r}: a compressed {ending} file allows no random access; unpack it")
            return kind
    raise ConfigError(f"{path!r}: data files end in {', '.join(KINDS)} (text files also with .gz or .zst)")


def split_compression(path: str) -> tuple[str, str | None]:
    """A file's name without the ending of its compression, and pyarrow's name of that."""
    name = storage.named(path)
    for ending, compression in COMPRESSIONS.items():
        if name.lower().endswith(ending):
            return name[: -len(ending)], compression
    return name, None


def _expand_folder(name: str) -> list[str]:
    return [name] if storage.is_remote(name) else saved_folder.folder_files(name)


@dataclass(frozen=True, slots=True)
class Shard:
    """Some records of one data file, next to each other: what one worker reads at a time."""

    path: str
    start: int
    """Where it begins: byte of a JSON file, row group of Parquet, record batch of Arrow, 0 for a tar."""
    end: int
    """Where the next one begins."""
    form: Literal["lines", "array", "object", "rows", "groups", "tar"]
    content: bytes | None = None
    """The bytes themselves, where the file can only be read from its beginning."""
    defect: str | None = None
    """What is wrong with the file behind these records; nothing more of it can be read."""
    weight: int = 0
    """Bytes of the file, as stored, that it stands for: what a progress bar counts."""
    line: int = 1
    """Line of the file that it begins in; known of arrays only."""


@dataclass(slots=True)
class Elements:
    """What a shard holds, in file order."""

    records: list[Record | Problem]
    """Lines in origins are counted from 1 at the start of the shard; 0 means the file as a whole."""
    count: int
    """Lines, elements or rows of the shard, blank ones included: what the next shard's lines start from."""


def shifted(origin: Origin, base: int) -> Origin:
    """An origin of a shard as one of its file, ``base`` lines further down."""
    return replace(origin, line=origin.line + base) if origin.line else origin


def json_type(value: Any) -> str:
    """How a message names the type of ``value``, with its article."""
    if value is None:
        return "null"
    if isinstance(value, Foreign):
        return value.kind
    names: dict[type, str] = {bool: "true or false", int: "a number", float: "a number", str: "a string"}
    return names.get(type(value), "a list" if isinstance(value, list) else "an object")
