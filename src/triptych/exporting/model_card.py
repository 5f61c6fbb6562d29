"""The model card of an exported folder: what was trained on what, scores, proof, how to serve; a README for the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from triptych.exporting import generation
from triptych.exporting.claims import Proof
from triptych.exporting.serving.kit import KitFacts, commands
from triptych.exporting.serving.notes import adapter_note, image_notes, notes, source_notes
from triptych.exporting.templates import fill
from triptych.exporting.trained_run import TrainedRun
from triptych.family.selectors import PARTS
from triptych.run import run_file
from triptych.run.settings import RunSettings

CARD = "README.md"


def write_card(path: Path, target: str, run: TrainedRun, proof: Proof, facts: KitFacts) -> None:
    """Write the card.

    Args:
        path: file to write.
        target: folder or hub name, as serving commands name it.
        run: what was exported.
        proof: what was found about it.
        facts: what a server must be told.
    """
    output = run.folder.parent
    values = {
        "front": yaml.safe_dump(front_matter(run.settings, run.files.family.name), sort_keys=False).strip(),
        "title": target.rstrip("/").rpartition("/")[2],
        "target": target,
        "family": run.files.family.name,
        "settings": run.settings,
        "base": run.settings.model.path,
        "base_is_local": Path(run.settings.model.path).is_dir(),
        "method": method(run.settings),
        "trained": [part for part in PARTS if part not in run.settings.model.freeze],
        "splits": [(split, _data(corpus)) for split, corpus in run.corpora.items()],
        "geometry": run.geometry,
        "steps": _steps(run.folder),
        "scores": _scores(output, run.folder.name, Path(run.settings.model.path).name),
        "proof": proof,
        "wanted": facts.wanted,
        "commands": commands(target, facts)[:-1],
        "notes": [
            generation.note(run.base),
            *notes(facts.wanted, run.geometry),
            *adapter_note(facts.adapters),
            *source_notes(run.settings.sources("train"), run.geometry),
            *image_notes(run.corpora.values()),
        ],
        "run_file": run_file.to_yaml(run.settings).strip(),
    }
    path.write_text(fill("model_card.md.j2", values), encoding="utf-8")


def front_matter(settings: RunSettings, family: str) -> dict[str, Any]:
    """What the hub reads of a card. A base that is a folder has no name there, so none is given."""
    tags = ["triptych", "multi-image", family.lower(), settings.model.train]
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "image-text-to-text", "tags": tags}
    if Path(settings.model.path).is_dir():
        return front
    return {"base_model": settings.model.path, "base_model_relation": "finetune", **front}


def method(settings: RunSettings) -> str:
    """How the model was trained, in words."""
    if settings.model.train == "full":
        return "full fine-tuning"
    lora = settings.model.lora
    kind = "QLoRA" if settings.model.train == "qlora" else "LoRA"
    kinds = [kind, *(["rsLoRA"] if lora.rslora else []), *(["DoRA"] if lora.dora else [])]
    where = lora.targets if isinstance(lora.targets, dict) else {"the parts trained": lora.targets}
    layers = [f"{_layers(targets)} of {part}" for part, targets in where.items()]
    experts = ", experts included" if lora.experts else ""
    text = f"{' with '.join(kinds)}, rank {lora.rank}, alpha {lora.alpha:g}, on {' and '.join(layers)}{experts}"
    return f"{text}; trained in full beside it: {', '.join(settings.model.full)}" if settings.model.full else text


def _layers(targets: str | list[str]) -> str:
    return "all linear layers" if isinstance(targets, str) else ", ".join(targets)


def _data(corpus: Any) -> dict[str, int]:
    tokens = corpus.lengths.tokens
    return {
        "samples": len(corpus),
        "images": int(corpus.image_counts.sum()),
        "most_images": int(corpus.image_counts.max()),
        "tokens": int(tokens.sum()),
        "supervised": int(corpus.supervised.sum()),
        "longest": int(tokens.max()),
    }


def _steps(folder: Path) -> int | None:
    """Optimizer steps that the weights saw: a checkpoint's own, or those of the run."""
    for path, key in ((folder / "trainer_state.json", "global_step"), (folder.parent / "summary.json", "steps")):
        if path.exists():
            return int(json.loads(path.read_text(encoding="utf-8"))[key])
    return None


def _scores(output: Path, folder: str, base: str) -> dict[str, Any] | None:
    """Exact match per task of the base and of this model, of those that ``triptych eval`` has answered for."""
    found = {}
    for label, name in (("base", base), ("this model", folder)):
        path = output / "eval" / name / "scores.json"
        if path.exists():
            found[label] = json.loads(path.read_text(encoding="utf-8"))
    if "this model" not in found:
        return None
    tasks = list(found["this model"])
    rows = [
        (
            task,
            found["this model"][task]["samples"],
            [scores.get(task, {}).get("exact_match") for scores in found.values()],
        )
        for task in tasks
    ]
    return {"models": list(found), "rows": rows}
