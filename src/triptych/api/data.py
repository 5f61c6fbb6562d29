"""Runs, sources and records from Python: read, checked, encoded; no torch but for pixel values."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from triptych.api.memory_source import Source
from triptych.compat.loading import open_run
from triptych.corpus.corpus import Corpus
from triptych.corpus.examine import CheckReport, Encoder
from triptych.corpus.execution.executor import LocalEngine
from triptych.corpus.execution.progress import Progress
from triptych.corpus.loading import load_or_build
from triptych.errors import ConfigError, DataError, Origin
from triptych.family.family import ModelFiles, read_model_files
from triptych.images import pixels
from triptych.images.geometry import SizedImage
from triptych.run import run_file
from triptych.run.prepare import SPLITS, Split, make_encoder
from triptych.run.selection import select
from triptych.run.settings import RunSettings
from triptych.sources import records
from triptych.text.layout import Budget

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample as the model sees it: T tokens, N images."""

    input_ids: NDArray[np.int64]
    """(T,) with one id per image token"""
    labels: NDArray[np.int64]
    """(T,) unshifted, -100 where nothing is learned"""
    position_ids: NDArray[np.int64]
    """(3, T): temporal, height, width"""
    image_grid_thw: NDArray[np.int64]
    """(N, 3) in patches"""
    images: list[SizedImage]
    origin: Origin
    task: str | None
    _files: ModelFiles
    _encoder: Encoder

    def text(self) -> str:
        """The tokens as text, special tokens included."""
        return str(self._encoder.template.tokenizer.decode(self.input_ids.tolist()))

    def pixel_values(self) -> NDArray[np.float32]:
        """(P, 3 * 2 * p * p) as transformers' image processor gives them; imports torch.

        Raises:
            DataError: if an image does not decode.
        """
        import torch

        from triptych.model.loading import PixelNormalizer

        geometry = self._encoder.geometry
        patches, problems = pixels.decode_images(self.images, geometry, self.origin)
        if problems:
            raise DataError(problems)
        joined = torch.from_numpy(pixels.join(patches, geometry))
        return cast("NDArray[np.float32]", PixelNormalizer(self._files)(joined).numpy())


class Samples(Sequence[Sample]):
    """The good samples of a split, read as they are asked for."""

    def __init__(self, corpus: Corpus, files: ModelFiles, encoder: Encoder) -> None:
        self.corpus, self._files, self.encoder = corpus, files, encoder

    def __len__(self) -> int:
        return len(self.corpus)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(K,) tokens of each sample"""
        return self.corpus.lengths.tokens

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        sample = self.corpus.sample(number)
        layout = sample.layout()
        return Sample(
            input_ids=layout.input_ids,
            labels=np.where(layout.supervised, layout.input_ids, -100),
            position_ids=layout.position_ids,
            image_grid_thw=layout.grids,
            images=sample.images,
            origin=layout.origin,
            task=self.corpus.task(number),
            _files=self._files,
            _encoder=self.encoder,
        )


@dataclass(frozen=True)
class Run:
    """A run file that has been read; nothing is indexed or written until it is asked for."""

    settings: RunSettings
    overrides: tuple[str, ...] = ()
    """What of the settings was given beside the run file; a resumed run keeps those of its first start"""

    @cached_property
    def _read(self) -> tuple[ModelFiles, Encoder]:
        files = read_model_files(self.settings.model.path)
        return files, make_encoder(files, self.settings)

    def samples(self, split: Split = "train") -> Samples:
        """The good samples of a split; what ``check`` reports is left out.

        Raises:
            ConfigError: if the run has no such split, or a data file is missing.
            ModelError: if the model folder cannot be used.
        """
        sources = self.settings.indexed(split)
        if not sources:
            raise ConfigError(f"data.{split} names no source")
        files, encoder = self._read
        corpus, _ = load_or_build(sources, encoder)
        return Samples(select(self.settings, split, corpus), files, encoder)


def load_run(run: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Run:
    """Read a run file, or settings in memory; no side effects.

    Args:
        run: path of a YAML file, also one of LLaMA-Factory's, or the content of a native one.
        overrides: settings by their dotted names: ``{"train.epochs": 3}``.

    Raises:
        ConfigError: naming the setting that cannot be used and, for an unknown one, the nearest known.
    """
    changes = [f"{key}={json.dumps(value)}" for key, value in (overrides or {}).items()]
    if isinstance(run, Mapping):
        return Run(run_file.from_mapping(run, changes), tuple(changes))
    opened = open_run(run, changes)
    if opened.tool is not None:
        logging.getLogger("triptych").info("%s", opened.said(run))
    return Run(opened.settings, opened.overrides)


def check(
    data: Run | records.Source | Sequence[records.Source] | Sequence[Mapping[str, Any]] | Dataset,
    *,
    deep: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Examine every record and every image header. Of a run, lengths are checked too.

    Args:
        data: a run, one or several sources, a list of records, or a ``datasets.Dataset``.
        deep: decode every image, not only its header.
        workers: processes; None means one per core.
        progress: is told what is examined, how far it is, and each problem as it is found.

    Raises:
        ConfigError: if a data file is missing or ``data`` is none of these.
        ModelError: if the run's model folder cannot be used.
    """
    encoder: Encoder | None = None
    if isinstance(data, Run):
        groups = [data.settings.sources(split) for split in SPLITS if data.settings.sources(split)]
        _, encoder = data._read
    else:
        groups = [_sources(data)]
    report = CheckReport()
    engine = None if workers is None else LocalEngine(workers)
    for sources in groups:
        _, found = load_or_build(sources, encoder, None, engine, progress, deep=deep)
        report = report.plus(found)
    return report


def _sources(data: Any) -> list[records.Source]:
    if isinstance(data, records.Source):
        return [data]
    if hasattr(data, "features") and hasattr(data, "cast_column"):
        return [Source.from_dataset(data)]
    if isinstance(data, Sequence) and not isinstance(data, str):
        if data and all(isinstance(item, records.Source) for item in data):
            return list(data)
        return [Source.from_records(data)]
    raise ConfigError(
        f"cannot check {type(data).__name__}: give a Run (load_run(...)), a Source, a list of records, or a Dataset"
    )


def encode(
    record: Mapping[str, Any],
    model: str | Path,
    *,
    media_dir: str | Path = ".",
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> Sample:
    """One record as the model sees it.

    Args:
        record: in any shape that a data file may have; images may be PIL images.
        model: model folder or hub name; its weights are not read.
        media_dir: folder that relative image paths start from.
        min_pixels: smallest area of a resized image; None means the model's own.
        max_pixels: largest area of a resized image; None means the model's own.

    Raises:
        ConfigError: if the limits contradict each other.
        ModelError: if the model folder cannot be used.
        DataError: with every problem of the record.
    """
    files = read_model_files(str(model))
    geometry = files.geometry.limit(min_pixels=min_pixels, max_pixels=max_pixels)
    if geometry.min_pixels > geometry.max_pixels:
        raise ConfigError(f"min_pixels {geometry.min_pixels:,} is larger than max_pixels {geometry.max_pixels:,}")
    encoder = Encoder(files.template(), geometry, Budget(), files.text_hash())
    source = Source.from_records([record], media_dir=media_dir)
    corpus, report = load_or_build([source], encoder, None, LocalEngine(1))
    if report.problems:
        raise DataError(report.problems, report.hints)
    return cast(Sample, Samples(corpus, files, encoder)[0])
