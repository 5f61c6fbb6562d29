"""Plan, train, evaluate and export from Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from triptych.api.data import Run
from triptych.errors import ConfigError, DataError
from triptych.planning.cost import model_cost
from triptych.planning.plan import Plan
from triptych.recovery.output_folder import FINAL, model_to_evaluate
from triptych.recovery.resume import FinishedError
from triptych.recovery.start import starting
from triptych.run.prepare import Prepared, Split, plan_training, prepare
from triptych.run.reporter import LogReporter
from triptych.run.settings import RunSettings
from triptych.run.sharing import decide_sharing

if TYPE_CHECKING:
    from triptych.exporting.claims import Proof
    from triptych.forward.batch import Batch
    from triptych.inference.predictions import Evaluation


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The rows of a run, all epochs one after the other."""

    plan: Plan
    rows: int
    steps: int

    def row(self, number: int) -> list[int]:
        """Numbers of the samples in a row, as ``Run.samples()`` counts them."""
        return cast("list[int]", self.plan.row(number).tolist())

    def summary(self) -> str:
        """Rows and steps in a sentence."""
        return f"{len(self.plan.samples):,} samples in {self.rows:,} rows, {self.steps:,} steps"


def plan(run: Run, *, world_size: int = 1) -> RunPlan:
    """The rows that training will take, exact before any pixel is decoded.

    Raises:
        ConfigError: if a data file is missing, or settings cannot work together.
        DataError: with all problems, under ``data.on_error: stop``.
        ModelError: if the model folder cannot be used.
    """
    settings = run.settings
    prepared = _prepare(settings, ("train",))
    cost = model_cost(settings.model.recipe, prepared.files.shapes)
    corpus = prepared.corpora["train"]
    shared = decide_sharing(settings, prepared.files, corpus, cost).sharing
    planned = plan_training(settings, corpus, world_size, cost, shared)
    return RunPlan(planned, len(planned), -(-len(planned) // settings.train.rows_per_step))


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What training leaves behind."""

    output: Path
    """Folder of checkpoints and logs"""
    final: Path
    """Folder of the trained model"""


def train(run: Run, *, resume: bool = False) -> TrainResult:
    """Check, index, plan and train; imports torch.

    Args:
        run: what to train.
        resume: go on from the last checkpoint in the output folder; a finished run is given back as it is.

    Raises:
        ConfigError: if settings cannot work together, the output is another run's, or, under ``resume``, there is no
            checkpoint or a setting or sample is not what it was.
        DataError: with all problems, under ``data.on_error: stop``.
        ModelError: if the model cannot be loaded.
    """
    out, output = LogReporter(), Path(run.settings.output)
    try:
        with starting(run.settings, out, resuming=resume, overrides=run.overrides) as (settings, prepared, start):
            from triptych.training.train import train as run_training

            return TrainResult(output, run_training(settings, prepared, out, start=start))
    except FinishedError:
        return TrainResult(output, output / FINAL)


def batch(run: Run, samples: Sequence[int], *, split: Split = "train") -> Batch:
    """Some samples as the row that a model takes; imports torch.

    Args:
        run: whose data it is.
        samples: their numbers, as ``Run.samples(split)`` counts them.
        split: ``train`` or ``eval``.

    Raises:
        ConfigError: if the run has no such split, or ``samples`` is empty.
        DataError: if an image does not decode.
        IndexError: if there is no such sample.
    """
    from triptych.forward.batch import build_batch

    found = run.samples(split)
    numbers = [range(len(found))[number] for number in samples]
    if not numbers:
        raise ConfigError("a batch needs at least one sample")
    built = build_batch(found.corpus, numbers, filler=found.encoder.template.filler(), decode=run.settings.data.decode)
    if built.problems:
        raise DataError(list(built.problems))
    return built


def evaluate(run: Run, checkpoint: str | Path | None = None) -> Evaluation:
    """Answer the held-out samples; answers, scores and a page are written below the run's output. Imports torch.

    Args:
        run: whose ``data.eval`` is answered.
        checkpoint: model folder; None means the run's final model.

    Raises:
        ConfigError: if the run names no held-out data, or there is no such folder.
        DataError: with all problems, under ``data.on_error: stop``.
        ModelError: if the model cannot be loaded.
    """
    folder = model_to_evaluate(run.settings, checkpoint)
    prepared = _prepare(run.settings, ("eval",))
    from triptych.inference.evaluate import evaluate as run_evaluation

    return run_evaluation(run.settings, prepared, folder, LogReporter())


def export(
    checkpoint: str | Path,
    to: str | Path,
    *,
    dtype: Literal["auto", "bfloat16", "float32", "float16"] = "auto",
    samples: int = 4,
    check: bool = False,
) -> Proof:
    """Merge, save, read back and prove the model equal to the trained one; imports torch.

    Args:
        checkpoint: checkpoint, or the folder ``final`` of a run.
        to: folder to write to, new or empty.
        dtype: precision; ``auto`` is that of the base's files.
        samples: how many samples of the run's data have their logits compared.
        check: prove the export that is in ``to`` already; write nothing.

    Raises:
        ConfigError: if a folder is not what it should be.
        ModelError: if the weights cannot be loaded.
        TriptychError: if the export is not equal, naming the first claim that does not hold.
    """
    from triptych.exporting.export import ExportOptions
    from triptych.exporting.export import export as run_export

    return run_export(Path(checkpoint), Path(to), LogReporter(), ExportOptions(dtype, samples, check))


def _prepare(settings: RunSettings, splits: Sequence[Split]) -> Prepared:
    return prepare(settings, splits, LogReporter(), rejected=False)
