"""How an exported model answers a request that sends no settings of its own: as ``triptych eval`` did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import GenerationConfig

GENERATION_CONFIG = "generation_config.json"
BASE_GENERATION = "base_generation"
"""Folder inside an export that holds the base's own settings, for servers that are to answer with those."""
GREEDY: dict[str, Any] = {"temperature": 0.0, "repetition_penalty": 1.0}
"""What vLLM reads; it does not look at ``do_sample``."""


def greedy(base: GenerationConfig | None, turn_end: int) -> dict[str, Any]:
    """The likeliest token every time, no penalty; answers end as they were trained to, or at an id of ``base``.

    ``temperature`` 0 says to vLLM what ``do_sample`` says to transformers, which ignores it and notes so when it loads.
    """
    tokens = {name: getattr(base, name, None) for name in ("bos_token_id", "pad_token_id")}
    known = {name: value for name, value in tokens.items() if value is not None}
    ends = stop_ids(getattr(base, "eos_token_id", None))
    known["eos_token_id"] = [turn_end, *(end for end in ends if end != turn_end)]
    return {**known, "do_sample": False, **GREEDY}


def stop_ids(found: Any) -> list[int]:
    """The ids that end an answer, of ``eos_token_id``: none, one, or several."""
    return [] if found is None else [found] if isinstance(found, int) else [int(end) for end in found]


def write_generation(base: GenerationConfig | None, folder: Path, out: Path, turn_end: int) -> None:
    """Write how the export ``out`` answers; where the base's own settings differ from that, keep them beside it.

    Args:
        base: what the trained model would answer with.
        folder: of the base.
        out: the export.
        turn_end: id of the token that ends a turn.
    """
    text = json.dumps(greedy(base, turn_end), indent=2) + "\n"
    (out / GENERATION_CONFIG).write_text(text, encoding="utf-8")
    source = folder / GENERATION_CONFIG
    if own_settings(folder):
        target = out / BASE_GENERATION
        target.mkdir(exist_ok=True)
        (target / GENERATION_CONFIG).write_bytes(source.read_bytes())


def note(base: Path) -> str:
    """What whoever serves the model should know about it, in sentences."""
    said = (
        "A request that sends no settings is answered as in the evaluation: the likeliest token every time, no penalty "
        f"(`{GENERATION_CONFIG}`; what a request sends comes first)."
    )
    others = own_settings(base)
    if not others:
        return said
    return (
        f"{said} The base's own settings ({', '.join(others)}) are in `{BASE_GENERATION}`: `--generation-config` of "
        f'vLLM takes that folder, and transformers `GenerationConfig.from_pretrained(folder, "{BASE_GENERATION}/'
        f'{GENERATION_CONFIG}")`.'
    )


def own_settings(base: Path) -> list[str]:
    """What the base's own settings would do to an answer, e.g. ``do_sample true``; empty where they are greedy too."""
    source = base / GENERATION_CONFIG
    if not source.exists():
        return []
    settings = json.loads(source.read_text(encoding="utf-8"))
    neutral = {"do_sample": False, "repetition_penalty": 1.0}
    drawing = ("temperature", "top_p", "top_k", "min_p") if settings.get("do_sample") else ()
    found = [name for name, value in neutral.items() if settings.get(name, value) != value]
    return [f"{name} {json.dumps(settings[name])}" for name in (*found, *drawing) if name in settings]
