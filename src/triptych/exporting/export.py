"""``triptych export``: merge, save, read back, prove equal, say how to serve; upload if asked."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from transformers import PreTrainedModel

from triptych.errors import ConfigError, ModelError
from triptych.exporting import claims
from triptych.exporting.claims import PROOF, Expected, Proof, ProofError, Step
from triptych.exporting.generation import write_generation
from triptych.exporting.hub import HubTarget, push_folder
from triptych.exporting.model_card import CARD, write_card
from triptych.exporting.proof_samples import ProofSamples, roomy_device
from triptych.exporting.serving.kit import FOLDER, commands, fill_kit, kit_facts, write_kit
from triptych.exporting.trained_run import RUN_FILE, TrainedRun, open_run
from triptych.family.family import read_model_files
from triptych.family.folders import ADAPTER_CONFIG
from triptych.model.loading import ProcessorFiles, choose_precision
from triptych.model.trained import frozen_names, merged, quiet_loading, released_dtype, reload, start_model
from triptych.run import run_file
from triptych.run.reporter import Reporter

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SAMPLES = 4
VERSIONS = ("triptych", "torch", "transformers", "peft", "safetensors")


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How to export."""

    dtype: str = "auto"
    """Precision to save in; ``auto`` is that of the base's files, or under ``check`` that of the export"""
    samples: int = SAMPLES
    """How many samples' logits are compared"""
    check: bool = False
    """Prove an existing export, and write nothing"""
    push: HubTarget | None = None
    """Where to upload it, once proved"""


def export(folder: Path, out: Path, reporter: Reporter, options: ExportOptions | None = None) -> Proof:
    """Write the trained model in ``folder`` to ``out`` as one that transformers and servers load, and prove it.

    Args:
        folder: a checkpoint, or the final model of a run; it holds ``run.yaml``.
        out: folder to write to; new or empty.
        reporter: told what is found.
        options: how; the defaults if None.

    Raises:
        ConfigError: if ``folder`` is no trained folder, ``out`` is not as needed, or the upload is refused.
        ModelError: if a model cannot be loaded.
        DataError: if the run's data is no longer there.
        ProofError: with the first tensor or sample that is not as it must be.
    """
    options = options or ExportOptions()
    _check_target(out, options.check)
    with quiet_loading():
        run = open_run(folder, reporter)
        chosen = DTYPES.get(options.dtype) or released_dtype(out if options.check else run.base)
        model = _merge(run, chosen)
        if not options.check:
            _save(model, run, out)
            reporter.line(f"written: {out}, {_short(chosen)}")
        result = prove(run, model, out, chosen, options.samples)
    _show(result, reporter)
    if not options.check:
        (out / PROOF).write_text(json.dumps(result.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if not result.holds:
        failed = result.steps[-1]
        raise ProofError(f"{out} is not proved: {failed.claim}: {failed.found}")
    facts = kit_facts(run, out)
    if not options.check:
        name = str(out) if options.push is None else options.push.name
        write_kit(out, fill_kit(facts))
        write_card(out / CARD, name, run, result, facts)
        reporter.line(f"scripts, a client and recipes that serve it: {out / FOLDER}")
    result.commands = commands(str(out), facts)
    if options.push is not None:
        reporter.line(push_folder(options.push, out))
    return result


def _check_target(out: Path, check: bool) -> None:
    if check:
        if not (out / "config.json").exists():
            raise ConfigError(f"--check: {out} holds no exported model; export one with --to {shlex.quote(str(out))}")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not empty; remove it, choose another folder, or prove it again with --check")


def _merge(run: TrainedRun, dtype: torch.dtype) -> PreTrainedModel:
    model = merged(run.settings.model, run.folder, dtype)
    model.config.use_cache = True  # training turned it off
    for name in model.config.sub_configs:
        getattr(model.config, name).dtype = dtype  # else they go on naming the precision of training
    return model


def _save(model: PreTrainedModel, run: TrainedRun, out: Path) -> None:
    model.save_pretrained(out)
    write_generation(model.generation_config, run.base, out, run.files.template().turn_end)
    extra = {RUN_FILE: run_file.to_yaml(run.settings)}
    ProcessorFiles(run.files, run.geometry, extra).save_pretrained(out)


def prove(run: TrainedRun, model: PreTrainedModel, out: Path, dtype: torch.dtype, samples: int) -> Proof:
    """Examine ``out`` claim by claim, up to the first that does not hold.

    Args:
        run: the run that ``out`` is an export of.
        model: its weights merged again, in ``dtype``, in main memory.
        out: the exported folder; read only.
        dtype: precision of the export.
        samples: how many samples' logits are compared.
    """
    precision = choose_precision(run.settings.model)
    result = Proof(str(run.folder), run.settings.model.path, _short(dtype), _short(precision), versions=_versions())
    claims = _Claims(run, model, out, dtype, samples, result)
    for examine in (
        claims.names,
        claims.reading,
        claims.stopping,
        claims.weights,
        claims.changes,
        claims.merge,
        claims.logits,
        claims.answer,
    ):
        try:
            result.steps.append(Step(examine.__name__, True, examine()))
        except (ProofError, ModelError) as error:  # a damaged file cannot be read
            result.steps.append(Step(examine.__name__, False, str(error)))
            break
    return result


class _Claims:
    """The claims about an exported folder, in the order in which they are examined.

    Each returns what it found and raises ``ProofError`` where it does not hold; later ones use what earlier ones read.
    """

    def __init__(
        self, run: TrainedRun, model: PreTrainedModel, out: Path, dtype: torch.dtype, samples: int, result: Proof
    ) -> None:
        self.run = run
        self.model = model
        self.out = out
        self.dtype = dtype
        self.result = result
        self.proof_samples = ProofSamples(
            run.witnesses,
            run.files.template(),
            run.files,
            samples=samples,
            max_new_tokens=run.settings.eval.max_new_tokens,
            device=roomy_device(model.num_parameters()),
        )
        self._read: PreTrainedModel | None = None
        self._answers: list[str] = []

    @property
    def read(self) -> PreTrainedModel:
        """The export as a server loads it; read once."""
        if self._read is None:
            self._read = reload(self.out)
        return self._read

    def names(self) -> str:
        return claims.check_names(self.run.base, self.out, self.model)

    def reading(self) -> str:
        return claims.check_reading(read_model_files(str(self.out)), self.run.files, self.run.geometry)

    def stopping(self) -> str:
        template = self.proof_samples.template
        return claims.check_stopping(self.out, template.turn_end, self.run.files.chat_template.source)

    def weights(self) -> str:
        return claims.check_weights(self.model, self.read)

    def changes(self) -> str:
        settings, family = self.run.settings.model, self.run.files.family
        base = start_model(settings)
        found, self.result.parts = claims.check_changes(base, self.read, family, frozen_names(base, family, settings))
        return found

    def merge(self) -> str:
        if not (self.run.folder / ADAPTER_CONFIG).exists():
            return "nothing to merge: the weights are the trained ones"
        full = torch.float32
        expected = self._expected(full, full)
        whole = merged(self.run.settings.model, self.run.folder, full).to(self.proof_samples.device)  # type: ignore[arg-type]
        return claims.check_merge(expected, self.proof_samples.logits(whole))

    def logits(self) -> str:
        expected = self._expected(choose_precision(self.run.settings.model), self.dtype)
        (meant, meant_answer), (found, found_answer) = (
            self.proof_samples.ask(model) for model in (self.model, self.read)
        )
        self._answers = [meant_answer, found_answer]
        self.result.prompt, self.result.tolerance = self.proof_samples.asked, expected.tolerance
        said, self.result.samples = claims.check_logits(expected, meant, found)
        return said

    def answer(self) -> str:
        meant, self.result.answer = self._answers
        return claims.check_answer(meant, self.result.answer)

    def _expected(self, precision: torch.dtype, dtype: torch.dtype) -> Expected:
        return self.proof_samples.expected(self.run.settings.model, self.run.folder, self.run.files, precision, dtype)


def _show(result: Proof, reporter: Reporter) -> None:
    if result.parts:
        rows = [
            [p.part, f"{p.parameters:,}", f"{p.tensors}", f"{p.frozen}", f"{p.changed}", f"{p.largest:.2g}"]
            for p in result.parts
        ]
        columns = ("part", "parameters", "tensors", "frozen", "changed", "largest change")
        reporter.table("Against the base", columns, rows)
    steps = [(step.claim, "yes" if step.holds else "NO", step.found) for step in result.steps]
    reporter.table(f"Proof, {result.dtype}", ("claim", "holds", "found"), steps, sentences=True)


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a folder, or without adapters
            continue
    return found


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
