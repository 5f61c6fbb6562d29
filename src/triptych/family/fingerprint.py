"""Which weights a run was trained on: names, shapes and sampled bytes of a base's tensors, cheap at any size.

Some thousand small reads, however large the files are; so a base that was replaced, saved again after training or
exchanged for another release is noticed, and one that was only moved or cut into other files is the same.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from triptych.errors import ModelError
from triptych.family.folders import STATE

READS = 4096
"""Most blocks that are read."""
BLOCK = 4096
"""Bytes of a block."""
LARGEST_HEADER = 100 * 2**20


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What tells one base from another."""

    tensors: int
    bytes: int
    """Of all tensors"""
    digest: str
    """Of their names, types and shapes, and of sampled bytes"""

    def __str__(self) -> str:
        return f"{self.tensors:,} tensors of {self.bytes:,} bytes, {self.digest[:8]}"


def fingerprint(path: str) -> Fingerprint:
    """The fingerprint of a model's weights.

    Args:
        path: model folder or hub name; from the hub, what is loaded already is read.

    Raises:
        ModelError: if there are no weights, or a file is damaged.
    """
    folder = weights_folder(path)
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not files:
        raise ModelError(f"{path} holds no weights (*.safetensors)")
    pieces = sorted(piece for file in files for piece in _pieces(file))
    total, digest = 0, xxhash.xxh3_128()
    every = max(1, math.ceil(2 * len(pieces) / READS))  # two blocks of each piece that is looked into
    for number, (name, about, file, start, size) in enumerate(pieces):
        total += size
        digest.update(f"{name} {about} {size}\n".encode())
        if number % every == 0:
            for block in _blocks(file, start, size, most=READS // len(pieces)):
                digest.update(block)
    return Fingerprint(len(pieces), total, digest.hexdigest())


def note(path: str) -> dict[str, Any]:
    """What a checkpoint keeps of its base.

    Raises:
        ModelError: if there are no weights, or a file is damaged.
    """
    return {"path": path, **asdict(fingerprint(path))}


def check_base(checkpoint: Path, path: str) -> None:
    """See that a base is the one that a checkpoint was trained on; one that keeps no fingerprint is taken as it is.

    Args:
        checkpoint: a checkpoint, or the final model of a run.
        path: the base, a model folder or hub name.

    Raises:
        ModelError: naming the base, if it is another one.
    """
    try:
        kept = json.loads((checkpoint / STATE).read_text(encoding="utf-8")).get("base")
    except FileNotFoundError:
        return
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"cannot read {checkpoint / STATE}: {error}") from error
    if not isinstance(kept, Mapping):
        return
    now, then = fingerprint(path), Fingerprint(kept["tensors"], kept["bytes"], kept["digest"])
    if now != then:
        other = "" if kept["path"] == path else f", which was {kept['path']} when training started"
        raise ModelError(
            f"{path} is not the base that {checkpoint} was trained on{other}: then {then}; now {now}; put that base "
            "back, or name its folder in model.path"
        )


def weights_folder(path: str) -> Path:
    """The folder of a model's weights; from the hub, they are loaded if need be."""
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path, allow_patterns=["*.safetensors", "*.json"]))


_Piece = tuple[str, str, Path, int, int]
"""Name, what is known of it, file, first byte, number of bytes."""


def _pieces(file: Path) -> Iterator[_Piece]:
    """The tensors of a file; a file of another form is one piece."""
    if file.suffix != ".safetensors":
        yield file.name, "", file, 0, file.stat().st_size
        return
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > LARGEST_HEADER:
                raise ValueError("its header is too long")
            header = json.loads(opened.read(length))
        for name, about in header.items():
            if name != "__metadata__":
                start, end = about["data_offsets"]
                yield name, f"{about['dtype']} {about['shape']}", file, 8 + length + start, end - start
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"cannot read the weights {file}: {error}") from error


def _blocks(file: Path, start: int, size: int, *, most: int) -> Iterator[bytes]:
    """Blocks of a piece, evenly spread; all of it where it is small, and two at least."""
    count = max(2, most)
    with file.open("rb") as opened:
        if size <= count * BLOCK:
            opened.seek(start)
            yield opened.read(size)
            return
        for number in range(count):
            opened.seek(start + (size - BLOCK) * number // (count - 1))
            yield opened.read(BLOCK)
