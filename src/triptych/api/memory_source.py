"""Records in memory as a source: written to the cache folder once, with their images."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import orjson
from PIL import Image, ImageOps

from triptych.errors import ConfigError
from triptych.images.cache_files import cache_folder
from triptych.sources import records

if TYPE_CHECKING:
    from datasets import Dataset

IMAGE_FILES = "records"
"""Folder of the cache that holds records and images which were in memory."""


class Source(records.Source):
    """Data files that share an image folder; also made of records in memory."""

    @classmethod
    def from_records(cls, data: Iterable[Mapping[str, Any]], *, media_dir: str | Path = ".", **options: Any) -> Source:
        """A source of dictionaries; images are paths, bytes, ``{"bytes", "path"}`` or PIL images.

        Records and images are written to the cache folder once, under the hash of their content: origins name that
        file, whose line is the record's number, from 1.

        Args:
            data: the records, in any shape that a data file may have.
            media_dir: folder that relative image paths start from.
            options: further fields of ``Source``: ``columns``, ``tags``, ``confine``, ``allow_remote``.

        Raises:
            ConfigError: if a record is no mapping, or holds a value that JSON cannot.
        """
        folder = cache_folder() / IMAGE_FILES
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for number, record in enumerate(data, 1):
            if not isinstance(record, Mapping):
                raise ConfigError(f"record {number} is {type(record).__name__}; give dictionaries")
            try:
                lines.append(orjson.dumps(_plain(record, folder), option=orjson.OPT_SERIALIZE_NUMPY))
            except TypeError as error:
                raise ConfigError(f"record {number}: {error}") from error
        content = b"\n".join(lines) + b"\n"
        path = folder / f"{hashlib.sha256(content).hexdigest()[:32]}.jsonl"
        _write_once(path, content)
        return cls(str(path), str(Path(media_dir).expanduser().absolute()), **options)

    @classmethod
    def from_dataset(cls, dataset: Dataset, **options: Any) -> Source:
        """A source of a ``datasets.Dataset``; image columns keep the bytes they were stored with.

        Raises:
            ConfigError: as ``from_records``.
        """
        from datasets import Image as ImageFeature

        for name, feature in dataset.features.items():
            if isinstance(feature, ImageFeature):
                dataset = dataset.cast_column(name, ImageFeature(decode=False))
        return cls.from_records(cast(Iterable[Mapping[str, Any]], dataset), **options)


def _plain(value: Any, folder: Path) -> Any:
    """A value as JSON holds it: images in memory become files of ``folder``, named by their content."""
    if isinstance(value, Image.Image):
        buffer = io.BytesIO()
        upright = ImageOps.exif_transpose(value)
        try:
            upright.save(buffer, "PNG")
        except OSError:  # a mode that PNG does not have, such as CMYK
            upright.convert("RGB").save(buffer, "PNG")
        return _image_file(buffer.getvalue(), folder)
    if isinstance(value, bytes):
        return _image_file(value, folder)
    if isinstance(value, Mapping):
        if set(value) == {"bytes", "path"} and isinstance(value["bytes"], bytes):
            return _image_file(value["bytes"], folder)
        if set(value) == {"bytes", "path"} and value["bytes"] is None:
            return value["path"]
        return {key: _plain(item, folder) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, folder) for item in value]
    return value


def _image_file(content: bytes, folder: Path) -> str:
    path = folder / hashlib.sha256(content).hexdigest()[:32]
    _write_once(path, content)
    return str(path)


def _write_once(path: Path, content: bytes) -> None:
    if not path.exists():
        unfinished = path.with_name(f"{path.name}.{os.getpid()}")
        unfinished.write_bytes(content)
        unfinished.replace(path)
