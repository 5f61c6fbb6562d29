"""``triptych encode``: one JSON line per sample, exactly what the model will see."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import orjson

from triptych.commands.options import SourceOptions, refuse_to_overwrite
from triptych.corpus.examine import Encoder
from triptych.errors import ConfigError, Origin, Problem, printable_json
from triptych.family.family import ModelFiles, read_model_files
from triptych.images import pixels as pixel_path
from triptych.images.geometry import Geometry, SizedImage
from triptych.run.prepare import index_sources
from triptych.terminal import Terminal
from triptych.text.layout import Budget, Layout


class PixelLimits(NamedTuple):
    """Smallest and largest area of a resized image, px; None for the model's own."""

    min_pixels: int | None = None
    max_pixels: int | None = None


def encode(
    data: Sequence[str],
    *,
    model: str,
    source: SourceOptions | None = None,
    limits: PixelLimits,
    out: Path | None,
    pixels: Path | None,
) -> int:
    """Write the accepted samples in input order; rejected ones go to standard error as ``check`` prints them.

    Returns:
        The exit status: 1 if a sample was rejected.

    Raises:
        ConfigError: if a data file is missing, the limits contradict each other, or an output cannot be written.
        ModelError: if the model folder cannot be used.
    """
    files = read_model_files(model)
    geometry = files.geometry.limit(**limits._asdict())
    if geometry.min_pixels > geometry.max_pixels:
        raise ConfigError(f"min-pixels {geometry.min_pixels:,} is larger than max-pixels {geometry.max_pixels:,}")
    encoder = Encoder(files.template(), geometry, Budget(), files.text_hash())
    read = (source or SourceOptions()).source(data)
    refuse_to_overwrite(read.files(), [path for path in (out, pixels) if path is not None])
    terminal = Terminal()
    if files.replaced is not None:
        terminal.line(files.replaced)
    corpus, report = index_sources("encoding", [read], encoder, terminal)
    rejected = list(report.problems)
    terminal.problems(report)
    with ExitStack() as stack:
        try:
            lines: IO[bytes] = stack.enter_context(out.open("wb")) if out is not None else sys.stdout.buffer
            store = stack.enter_context(_PixelStore(pixels, files, geometry)) if pixels is not None else None
        except OSError as error:
            raise ConfigError(f"cannot write {error.filename}: {error.strerror}") from error
        for index in range(len(corpus)):
            sample = corpus.sample(index)
            problems = store.add(sample.images, sample.origin) if store is not None else []
            if problems:
                print(*problems, sep="\n", file=sys.stderr)
                rejected.extend(problems)
                continue
            line = _line(sample.layout(), sample.images)
            dumped = orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY).decode()
            lines.write(printable_json(dumped).encode() + b"\n")
    return 1 if rejected else 0


def _line(layout: Layout, images: Sequence[SizedImage]) -> dict[str, Any]:
    weights = {} if set(layout.weights.tolist()) <= {0.0, 1.0} else {"loss_weights": layout.weights}
    return {
        "origin": str(layout.origin),
        "input_ids": layout.input_ids,
        "labels": np.where(layout.supervised, layout.input_ids, -100),
        "position_ids": layout.position_ids,
        "image_grid_thw": layout.grids,
        "images": [_image_fields(image) for image in images],
        **weights,
    }


def _image_fields(image: SizedImage) -> dict[str, Any]:
    return {
        "path": image.name,
        "height": image.height,
        "width": image.width,
        "resized_height": image.resized_height,
        "resized_width": image.resized_width,
    }


class _PixelStore:
    """An .npz written array by array, so that memory holds one sample."""

    def __init__(self, path: Path, files: ModelFiles, geometry: Geometry) -> None:
        import torch

        from triptych.model.loading import PixelNormalizer

        self._torch = torch
        self._normalizer = PixelNormalizer(files)
        self._geometry = geometry
        self._archive = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True)
        self._count = 0

    def __enter__(self) -> _PixelStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()

    def add(self, images: Sequence[SizedImage], origin: Origin) -> list[Problem]:
        """Store ``pixel_values_i`` of the i-th accepted sample; returns the problems if an image does not decode."""
        patches, problems = pixel_path.decode_images(images, self._geometry, origin)
        if problems:
            return problems
        joined = pixel_path.join(patches, self._geometry)
        values = self._normalizer(self._torch.from_numpy(joined)).numpy()
        with self._archive.open(f"pixel_values_{self._count}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, values)
        self._count += 1
        return []
