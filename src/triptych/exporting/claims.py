"""Prove an exported folder: what learned and nothing else changed, every value is the one meant, answers are the same.

names      the files hold the tensors of the base, under the same names and in the same shapes
reading    pixel limits, tokenizer and chat template are those of training
stopping   answers end where training ended them; the chat template that servers read is that of training
weights    every tensor read back equals the merged one, bit for bit
changes    what learned changed, what was frozen did not
merge      adapters merged into the base say what adapters beside it say, before anything is rounded
logits     equal to those of the trainer's model, within the rounding of the export's precision
answer     the merged model in memory and the one read back say the same about images
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from triptych.errors import TriptychError
from triptych.exporting.generation import GENERATION_CONFIG, stop_ids
from triptych.family.family import Family, ModelFiles
from triptych.family.folders import read_json
from triptych.family.selectors import PARTS, Part
from triptych.images.geometry import Geometry
from triptych.model.parts import part_of
from triptych.model.trained import stored_tensors
from triptych.text.template import TURN_END
from triptych.text.tokens.chat_template import read_chat_template

PROOF = "triptych_proof.json"

HEADROOM_FLOAT32, HEADROOM_16_BIT = 8.0, 3.0
"""Times the measured rounding that logits may differ by; see ``Expected``."""


class ProofError(TriptychError):
    """A claim about the exported folder does not hold; names the first tensor or sample that shows it."""


@dataclass(frozen=True, slots=True)
class Step:
    """One claim, and what was found."""

    claim: str
    holds: bool
    found: str


@dataclass(frozen=True, slots=True)
class PartChange:
    """How one part of the model differs from the base."""

    part: Part
    parameters: int
    tensors: int
    frozen: int
    """Tensors that were not to change."""
    changed: int
    """Tensors in which at least one value differs from the base's."""
    largest: float
    """Largest difference of a value."""


@dataclass(frozen=True, slots=True)
class SampleLogits:
    """One sample's logits: of the export against the trainer's model."""

    origin: str
    positions: int
    """Supervised positions compared, each over the whole vocabulary."""
    difference: float
    """Largest difference of a logit."""
    largest: float
    """Largest logit of the trainer's model, for scale."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the trainer's model says of the samples, and how far rounding may take another model from it.

    The tolerance is measured, not assumed: the trainer's own model, unmerged, with every weight moved at random by up
    to one unit in the last place of the export's precision and run in that precision, is compared with itself as it
    was trained. Where the export or the run computes in 16 bits, an export differs by 0.2 to 1.3 times as much (random
    models of all families, adapters and whole models), and 3 times is allowed. Where both are float32, nothing is
    rounded, but merging changes the order of summation, which moves the last places of every layer's output; 0 to 2.5
    times on the same models, and 8 times is allowed: about 1e-5 of the largest logit.
    """

    origins: tuple[str, ...]
    logits: tuple[torch.Tensor, ...]
    """Per sample (S, V) float32."""
    rounding: float
    """Largest difference of a logit that moving the weights made."""
    exact: bool
    """Whether both the run and the export compute in float32."""

    @property
    def tolerance(self) -> float:
        """How far a logit may be from the trainer's."""
        return (HEADROOM_FLOAT32 if self.exact else HEADROOM_16_BIT) * self.rounding


@dataclass(slots=True)
class Proof:
    """Everything found about an exported folder; what ``triptych_proof.json`` holds."""

    source: str
    base: str
    dtype: str
    precision: str
    """Of the trainer's model."""
    steps: list[Step] = field(default_factory=list)
    parts: list[PartChange] = field(default_factory=list)
    samples: list[SampleLogits] = field(default_factory=list)
    tolerance: float | None = None
    prompt: str | None = None
    answer: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    """What serves the export, and chats with it; not written down"""

    @property
    def holds(self) -> bool:
        return all(step.holds for step in self.steps)

    def to_dict(self) -> dict[str, Any]:
        found = {"holds": self.holds, **asdict(self)}
        del found["commands"]
        return found


def check_names(base: Path, exported: Path, model: PreTrainedModel) -> str:
    """The files of ``exported`` hold what those of ``base`` hold.

    A head that is tied to the embedding may be stored or not. Tensors of the base that transformers itself does not
    load (its class says which) cannot be in an export.

    Raises:
        ProofError: naming the first tensor that is missing, new, or of another shape.
        ModelError: if a file cannot be read.
    """
    before, after = stored_tensors(base), stored_tensors(exported)
    tied = set(model._tied_weights_keys or ()) if model.config.tie_word_embeddings else set()
    unread = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    left_out = {name for name in before if name not in after and any(pattern.search(name) for pattern in unread)}
    for name in sorted(before.keys() - after.keys() - tied - left_out):
        raise ProofError(f"{name} is in the base and missing from the export")
    for name in sorted(after.keys() - before.keys() - tied):
        raise ProofError(f"{name} is in the export and not in the base")
    for name in sorted(before.keys() & after.keys()):
        if before[name][0] != after[name][0]:
            raise ProofError(f"{name}: shape {after[name][0]} in the export, {before[name][0]} in the base")
    found = f"{len(after):,} tensors, names and shapes as in the base"
    return f"{found}; {len(left_out)} of the base that transformers does not load left out" if left_out else found


def check_reading(files: ModelFiles, trained: ModelFiles, geometry: Geometry) -> str:
    """The small files of the export make of samples what training made of them.

    Args:
        files: of the export.
        trained: of the base.
        geometry: with the pixel limits of the run.

    Raises:
        ProofError: naming what differs.
    """
    geometry = geometry.for_servers()
    if files.geometry != geometry:
        raise ProofError(f"images are cut otherwise than in training: {files.geometry}, trained with {geometry}")
    if (files.image_mean, files.image_std) != (trained.image_mean, trained.image_std):
        raise ProofError("images are normalised otherwise than in training: image_mean or image_std differ")
    if files.text_hash() != trained.text_hash():
        raise ProofError("the tokenizer or the chat template is not the one of training")
    return (
        f"{geometry.min_pixels:,} to {geometry.max_pixels:,} px per image as in training; "
        "tokenizer and chat template of training"
    )


def check_stopping(exported: Path, turn_end: int, template: str) -> str:
    """Servers end an answer at the end of a turn, as training did, and find the chat template of training.

    Args:
        exported: folder of the export.
        turn_end: id of the token that ends a turn.
        template: the chat template of training, in Jinja.

    Raises:
        ProofError: if they would not.
        ModelError: if a file cannot be read.
    """
    ends = stop_ids(read_json(exported, GENERATION_CONFIG, str(exported)).get("eos_token_id"))
    if turn_end not in ends:
        raise ProofError(
            f"{GENERATION_CONFIG} stops at {ends or 'nothing'}, and training ended answers at {TURN_END}, {turn_end}"
        )
    if read_chat_template(exported) != template:
        raise ProofError("the chat template that servers would read is not that of training, or is missing")
    return f"answers end at {TURN_END} ({turn_end}); the chat template is that of training"


def check_weights(meant: PreTrainedModel, read: PreTrainedModel) -> str:
    """Every tensor that was read back equals the merged one, bit for bit.

    Raises:
        ProofError: naming the first tensor that does not, and by how much.
    """
    found = dict(read.named_parameters())
    values = 0
    for name, wanted in meant.named_parameters():
        value = found[name]
        if value.dtype != wanted.dtype:
            raise ProofError(f"{name}: read back as {_short(value.dtype)}, meant to be {_short(wanted.dtype)}")
        if not same_bits(wanted, value):
            differ = wanted != value
            most = (wanted.float() - value.float()).abs().max().item()
            raise ProofError(
                f"{name}: {int(differ.sum()):,} of {wanted.numel():,} values differ from the merged weights, "
                f"by up to {most:.3g}"
            )
        values += wanted.numel()
    return f"{values:,} values in {len(found):,} tensors, equal bit for bit"


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors of one type hold the same bits."""
    return torch.equal(left.detach().contiguous().view(torch.uint8), right.detach().contiguous().view(torch.uint8))


def check_changes(
    base: PreTrainedModel, exported: PreTrainedModel, family: Family, frozen: Collection[str]
) -> tuple[str, list[PartChange]]:
    """What learned differs from the base, what was frozen does not.

    Args:
        base: the model that training started from.
        exported: the model to examine.
        family: names its parts.
        frozen: names of the parameters that were not to change.

    Raises:
        ProofError: if a frozen tensor changed, naming the first; or if nothing changed at all.
    """
    before = dict(base.named_parameters())
    sizes, tensors, kept, changes = (dict.fromkeys(PARTS, 0) for _ in range(4))
    largest = dict.fromkeys(PARTS, 0.0)
    for name, value in exported.named_parameters():
        part = part_of(name, family)
        changed = not _as_released(before[name], value)
        sizes[part] += value.numel()
        tensors[part] += 1
        kept[part] += name in frozen
        changes[part] += changed
        if changed:
            most = (value.float() - before[name].float()).abs().max().item()
            largest[part] = max(largest[part], most)
            if name in frozen:
                raise ProofError(f"{name} changed, by up to {most:.3g}, although it was frozen")
    parts = [PartChange(p, sizes[p], tensors[p], kept[p], changes[p], largest[p]) for p in PARTS]
    if not any(part.changed for part in parts):
        dtype = _short(next(exported.parameters()).dtype)
        raise ProofError(
            "no tensor differs from the base: this is the model that training started from"
            if dtype == "float32"
            else f"no tensor differs from the base in {dtype}: training changed nothing, or less than {dtype} can hold "
            "(then export with --dtype float32)"
        )
    changed_parts = ", ".join(f"{part.part} {part.changed} of {part.tensors}" for part in parts if part.changed)
    frozen_parts = ", ".join(f"{part.part} {part.frozen}" for part in parts if part.frozen)
    found = f"tensors changed: {changed_parts}"
    return f"{found}; frozen and unchanged: {frozen_parts}" if frozen_parts else found, parts


def _as_released(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Whether a tensor is the base's; a run on a GPU may have kept it in bfloat16."""
    if same_bits(before.to(after.dtype), after):
        return True
    return same_bits(before.to(torch.bfloat16).to(after.dtype), after)


def check_merge(expected: Expected, merged: Sequence[torch.Tensor]) -> str:
    """The merged weights, not rounded yet, are the base and its adapters.

    Args:
        expected: of the trainer's model, all of it in float32.
        merged: per sample (S, V), of the merged model in float32.

    Raises:
        ProofError: naming the first sample for which they are not.
    """
    most = 0.0
    for origin, trained, found in zip(expected.origins, expected.logits, merged, strict=True):
        difference = (found - trained).abs().max().item()
        if not difference <= expected.tolerance:  # also where it is not a number
            raise ProofError(
                f"{origin}: merged in float32, a logit differs by {difference:.3g} from that of the adapters beside "
                f"the base; rounding explains {expected.tolerance:.3g}"
            )
        most = max(most, difference)
    return f"{len(merged)} samples in float32, largest difference {most:.2g}, allowed {expected.tolerance:.2g}"


def check_logits(
    expected: Expected, meant: Sequence[torch.Tensor], read: Sequence[torch.Tensor]
) -> tuple[str, list[SampleLogits]]:
    """Logits of the model read back equal the merged model's exactly, and the trainer's within rounding.

    Args:
        expected: of the trainer's model.
        meant: per sample (S, V), of the merged model in memory.
        read: the same of the model read back.

    Raises:
        ProofError: naming the first sample for which they do not.
    """
    samples = []
    for origin, trained, memory, disk in zip(expected.origins, expected.logits, meant, read, strict=True):
        if not torch.equal(memory, disk):
            most = (memory - disk).abs().max().item()
            raise ProofError(f"{origin}: logits of the model read back differ from the merged ones by up to {most:.3g}")
        difference = (disk - trained).abs().max().item()
        if not difference <= expected.tolerance:  # also where it is not a number
            raise ProofError(
                f"{origin}: a logit differs from the trainer's model by {difference:.3g}; rounding explains "
                f"{expected.tolerance:.3g}"
            )
        samples.append(SampleLogits(origin, len(disk), difference, trained.abs().max().item()))
    most = max(sample.difference for sample in samples)
    found = f"{len(samples)} samples, largest difference {most:.2g}, allowed {expected.tolerance:.2g}"
    return f"{found}, largest logit {max(sample.largest for sample in samples):.3g}", samples


def check_answer(meant: str, read: str) -> str:
    """Both models wrote the same.

    Raises:
        ProofError: with both answers.
    """
    if meant != read:
        raise ProofError(f"the merged model in memory answers {meant!r}, the one read back {read!r}")
    return f"both answer {meant!r}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
