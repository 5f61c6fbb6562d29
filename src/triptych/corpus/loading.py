"""The corpus of some sources: what is known already is taken from the caches, the rest is read and measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
from filelock import FileLock

from triptych.corpus.corpus import FORMAT, Corpus, write_table
from triptych.corpus.examine import CheckReport, Encoder
from triptych.corpus.execution.executor import Engine, LocalEngine
from triptych.corpus.execution.progress import Progress, Silent
from triptych.corpus.image_sizes import Sizes, measure_images, missing_hints
from triptych.corpus.index import Index, load_or_build_index
from triptych.corpus.lengths import LENGTHS, SampleLengths
from triptych.errors import Origin, Problem
from triptych.images.cache_files import cache_folder, intact, mark_used, replacing, seal
from triptych.images.geometry import Geometry
from triptych.images.size_cache import HeaderCache
from triptych.sources.records import Source
from triptych.text.layout import Budget


def load_or_build(
    sources: Sequence[Source],
    encoder: Encoder | None,
    cache: Path | None = None,
    engine: Engine | None = None,
    progress: Progress | None = None,
    *,
    deep: bool = False,
) -> tuple[Corpus, CheckReport]:
    """The corpus of ``sources``: what is known already is taken from the caches, the rest is read and measured.

    Args:
        sources: the data files.
        encoder: how the model reads samples; None checks records and images without a model, and gives no lengths.
        cache: folder of the caches; made if missing. None means the user's own.
        engine: where the work is done; the cores of this machine by default.
        progress: who is told.
        deep: decode every image that was not decoded before.

    Returns:
        The corpus of the good samples and the report of all. Problems are in the report; whether they end the run is
        the caller's decision.

    Raises:
        ConfigError: if a data file is missing or cannot be read.
    """
    engine, progress = engine or LocalEngine(), progress or Silent()
    cache = cache or cache_folder()
    template, identity = (None, "") if encoder is None else (encoder.template, encoder.identity)
    index = load_or_build_index(sources, template, identity, cache / "index", engine, progress)
    folder = cache / "corpora"
    folder.mkdir(exist_ok=True)
    names = "".join(part.name for part in index.folders)
    lock = folder / f"{hashlib.sha256(names.encode()).hexdigest()[:20]}.lock"
    with FileLock(lock):  # the ranks of a run: the first one measures
        sizes = measure_images(index, HeaderCache(cache), engine, progress, deep=deep)
        corpus, report = _bring_together(index, sizes, encoder, sources, folder)
    report.hints = missing_hints(index, sizes)  # not stored: they hold for the files as they are now
    return corpus, report


def _bring_together(
    index: Index, sizes: Sizes, encoder: Encoder | None, sources: Sequence[Source], folder: Path
) -> tuple[Corpus, CheckReport]:
    sizes_name = f"sizes-{sizes.digest}.arrow"
    about = {
        "geometry": asdict(encoder.geometry if encoder else Geometry(1, 1, 1, 1, 1)),
        "budget": asdict(encoder.budget if encoder else Budget()),
        "loss_weights": [source.loss_weight for source in sources],
        "limits": [source.limits and asdict(source.limits) for source in sources],
        "sizes": sizes_name,
        "files": [asdict(file) for file in index.files],
        "parts": [folder.name for folder in index.folders],
    }
    key = hashlib.sha256(json.dumps([FORMAT, encoder is None, about]).encode()).hexdigest()[:20]
    path, report_path = folder / f"lengths-{key}.arrow", folder / f"check-{key}.json"
    files = (path, report_path, folder / sizes_name)
    if all(file.exists() for file in files) and intact(files):
        mark_used(files)
        return Corpus(path), _read_report(report_path)
    sums = SampleLengths(index, sizes, encoder, [source.limits for source in sources])
    columns = sums.run()
    report = sums.report()
    write_table(folder / sizes_name, sizes.table())
    write_table(path, pa.table(columns, LENGTHS.with_metadata({"about": json.dumps(about)})))
    _write_report(report_path, report)
    return Corpus(path), report


def _write_report(path: Path, report: CheckReport) -> None:
    with replacing(path) as temporary:
        Path(temporary).write_text(json.dumps(asdict(report)), encoding="utf-8")
    seal(path)


def _read_report(path: Path) -> CheckReport:
    content = json.loads(path.read_text(encoding="utf-8"))
    for name in ("problems", "dropped"):
        content[name] = [Problem(**{**item, "origin": Origin(**item["origin"])}) for item in content[name]]
    return CheckReport(**content)
