"""``triptych check`` and ``triptych index``: every record of every source, all problems at once, no torch."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import orjson

from triptych.commands.options import SourceOptions
from triptych.compat.loading import open_for
from triptych.corpus.corpus import Corpus
from triptych.corpus.examine import CheckReport, Encoder
from triptych.corpus.execution.executor import Engine, LocalEngine
from triptych.errors import ConfigError, printable_json
from triptych.family.family import ModelFiles, read_model_files
from triptych.images.traits import Trait, said
from triptych.inspect.gather import leaks_of
from triptych.run.prepare import SPLITS, index_sources, make_encoder, prepare
from triptych.run.reporter import Reporter, report_line
from triptych.run.settings import RunSettings
from triptych.sources.records import Source
from triptych.terminal import Terminal


def check(
    arguments: Sequence[str],
    *,
    source: SourceOptions | None = None,
    as_json: bool,
    everything: bool = False,
    deep: bool = False,
    near: bool = False,
    engine: Engine | None = None,
) -> int:
    """Examine a run file's sources, or data files, and print what was found.

    With a run file the lengths are checked too (code ``too-long``); bare data files are checked without a model.

    Args:
        arguments: a run file and ``key=value`` settings, or data files and globs.
        source: how data files are read.
        as_json: print the result as JSON on standard output.
        everything: print every problem, not only some of each code.
        deep: decode every image, not only its header; what decoded once is remembered until the file changes.
        near: also compare what images look like, which decodes each once.
        engine: where the work is done; the cores of this machine by default.

    Returns:
        The exit status: 1 if there is a problem.

    Raises:
        ConfigError: if a run file cannot be used or a data file is missing.
        ModelError: if the run file's model folder cannot be used.
    """
    out = Terminal()
    looked = what_to_look_at(arguments, source or SourceOptions(), out)
    corpora: dict[str, Corpus] = {}
    report = CheckReport()
    for name, sources in looked.splits.items():
        # Split by split, as training does: what is indexed here is not indexed again there.
        corpora[name], found = index_sources(name, sources, looked.encoder, out, engine, deep=deep)
        report = report.plus(found)
    traits = sum((Counter(corpus.traits()) for corpus in corpora.values()), Counter[Trait]())
    leaks = leaks_of(corpora, out, near=near, with_text=looked.encoder is not None)
    if as_json:
        result = {
            "samples": report.samples,
            "ok": report.ok,
            "problems": [problem.to_dict() for problem in report.problems],
            "dropped": [problem.to_dict() for problem in report.dropped],
            "hints": report.hints,
            "images": {str(trait.name).lower(): traits[trait] for trait in Trait},
            "leaks": [item.as_dict() for item in leaks],
        }
        sys.stdout.buffer.write(
            printable_json(orjson.dumps(result).decode()).encode() + b"\n"
        )  # UTF-8 whatever the terminal's encoding
        sys.stdout.flush()
    else:
        out.problems(report, everything=everything)
        _print(out, list(corpora.values()), report, with_tokens=looked.encoder is not None)
        for sentence in said(traits):
            out.line(sentence)
        if traits.total():
            out.line("triptych convert --images DIR writes images that every server reads alike")
        for line in (line for item in leaks for line in item.lines()):
            out.line(line)
    return 1 if report.problems else 0


def _print(out: Terminal, corpora: Sequence[Corpus], report: CheckReport, *, with_tokens: bool) -> None:
    out.line(report_line(report))
    if not report.ok:
        return
    numbers, samples = np.unique(np.concatenate([corpus.image_counts for corpus in corpora]), return_counts=True)
    counts = ", ".join(f"{images}: {found:,}" for images, found in zip(numbers.tolist(), samples.tolist(), strict=True))
    out.line(f"images per sample: {counts}")
    if with_tokens:
        tokens = np.concatenate([corpus.lengths.tokens for corpus in corpora])
        spread = f"median {np.median(tokens):,.0f}, 90% under {np.quantile(tokens, 0.9):,.0f}"
        out.line(f"tokens per sample: {spread}, longest {tokens.max():,}")


@dataclass(frozen=True, slots=True)
class Looked:
    """What a command is to look at."""

    splits: dict[str, list[Source]]
    encoder: Encoder | None
    """How the run's model reads samples; None for bare data files"""
    settings: RunSettings | None = None
    files: ModelFiles | None = None


def what_to_look_at(arguments: Sequence[str], options: SourceOptions, out: Reporter) -> Looked:
    """The splits of a run file, or data files.

    Raises:
        ConfigError: if a run file cannot be used, or both are given.
        ModelError: if the run file's model folder cannot be used.
    """
    run_files = [name for name in arguments if name.endswith((".yaml", ".yml"))]
    if not run_files:
        return Looked({"data": [options.source(arguments)]}, None)
    overrides = [name for name in arguments if name not in run_files]
    if len(run_files) > 1 or any("=" not in name for name in overrides):
        raise ConfigError("give one run file (with key=value settings), or data files, not both")
    if options.given():
        raise ConfigError(f"{', '.join(options.given())}: for data files; a run file has settings for it")
    settings = open_for(run_files[0], overrides, out).settings
    files = read_model_files(settings.model.path)
    if files.replaced is not None:
        out.line(files.replaced)
    splits = {f"data.{split}": settings.sources(split) for split in SPLITS if settings.sources(split)}
    return Looked(splits, make_encoder(files, settings), settings, files)


def index(
    run: Path, overrides: Sequence[str], *, engine: Literal["local", "ray"], workers: int | None, address: str | None
) -> None:
    """Bring the caches up to date for a run file and print what was found.

    Raises:
        ConfigError: if the run file cannot be used or a data file is missing.
        DataError: with all problems, under ``data.on_error: stop``.
    """
    out = Terminal()
    settings = open_for(run, overrides, out).settings
    chosen = _engine(engine, workers, address)
    began = time.monotonic()
    prepared = prepare(settings, SPLITS, out, chosen, rejected=False)
    seconds = time.monotonic() - began
    samples = sum(report.samples for report in prepared.reports.values())
    out.line(f"indexed {samples:,} samples in {seconds:.1f} s")


def _engine(name: Literal["local", "ray"], workers: int | None, address: str | None) -> Engine:
    if name == "local":
        if address is not None:
            raise ConfigError("--address goes with --engine ray")
        return LocalEngine(workers)
    from triptych.corpus.execution.ray_executor import RayEngine

    return RayEngine(workers, address)
