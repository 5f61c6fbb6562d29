"""A trained folder with everything of its run that exporting needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from triptych.corpus.corpus import Corpus
from triptych.errors import ConfigError, DataError
from triptych.family.family import ModelFiles, read_model_files
from triptych.family.fingerprint import check_base, weights_folder
from triptych.family.folders import check_trained
from triptych.images.geometry import Geometry
from triptych.run import run_file
from triptych.run.prepare import SPLITS, Split, index_sources, make_encoder
from triptych.run.reporter import Reporter
from triptych.run.selection import select
from triptych.run.settings import RunSettings

RUN_FILE = "run.yaml"


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A trained folder and everything of its run that exporting needs."""

    folder: Path
    settings: RunSettings
    files: ModelFiles
    base: Path
    """Folder of the base's weights."""
    geometry: Geometry
    """With the pixel limits of the run."""
    corpora: dict[Split, Corpus]
    shrunk: bool
    """Whether images were made smaller to keep a budget of their sample."""

    @property
    def witnesses(self) -> Corpus:
        """The samples that the proof takes: held out, where there are any."""
        return self.corpora.get("eval", self.corpora["train"])


def open_run(folder: Path, out: Reporter) -> TrainedRun:
    """Read the run file in a trained folder, the base's small files, and the samples.

    Raises:
        ConfigError: if it is no trained folder, there is no run file, or it names data that is gone.
        ModelError: if the base cannot be used.
        DataError: if no good sample is left.
    """
    check_trained(folder)
    if not (folder / RUN_FILE).exists():
        raise ConfigError(f"{folder} holds no {RUN_FILE}: name a checkpoint, or the folder `final` of a run")
    settings = run_file.load(folder / RUN_FILE)
    files = read_model_files(settings.model.path)
    check_base(folder, settings.model.path)
    if files.replaced is not None:
        out.line(files.replaced)
    encoder = make_encoder(files, settings)
    corpora: dict[Split, Corpus] = {}
    shrunk = False
    for split in SPLITS:
        sources = settings.indexed(split) if split == "train" or settings.data.evaluates else []
        if not sources:
            continue
        corpus, report = index_sources(f"data.{split}", sources, encoder, out)
        if not len(corpus):
            raise DataError(report.problems or report.dropped, f"no good sample is left in data.{split}")
        corpora[split] = select(settings, split, corpus)
        shrunk = shrunk or report.shrunk > 0
    return TrainedRun(folder, settings, files, weights_folder(settings.model.path), encoder.geometry, corpora, shrunk)
