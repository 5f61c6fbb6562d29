"""What whoever serves an exported folder should know, in sentences."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from triptych.corpus.corpus import Corpus
from triptych.exporting.serving.adapters import Adapters
from triptych.exporting.serving.commands import pixel_limits
from triptych.exporting.serving.needs import ServingNeeds
from triptych.images.geometry import Geometry
from triptych.images.traits import Trait, said
from triptych.sources.records import Source


def image_notes(corpora: Iterable[Corpus]) -> list[str]:
    """Which images of the data servers read in another way than training, and how many these are, in sentences."""
    found = said(sum((Counter(corpus.traits()) for corpus in corpora), Counter[Trait]()))
    notes = [f"Of the data, {sentence}." for sentence in found]
    return notes and [*notes, "`triptych convert DATA --to OUT.jsonl --images DIR` writes images that all read alike."]


def source_notes(sources: Iterable[Source], geometry: Geometry) -> list[str]:
    """Which sources had limits of their own, which servers do not know, in sentences."""
    own: dict[tuple[int, int], list[str]] = {}
    for source in sources:
        if source.limits is not None:
            limited, _ = geometry.asked((0, 0), source.limits)
            name = source.path if isinstance(source.path, str) else source.path[0]
            own.setdefault((limited.min_pixels, limited.max_pixels), []).append(Path(name).name)
    return [
        f"Images of {', '.join(names)} had limits of their own in training ({low:,} to {high:,} px); a server has one "
        "pair for all: send images of that kind at such a size, or serve them with "
        f"`--mm-processor-kwargs '{json.dumps({'min_pixels': low, 'max_pixels': high})}'`."
        for (low, high), names in own.items()
    ]


def notes(wanted: ServingNeeds, geometry: Geometry) -> list[str]:
    """What whoever serves the model should know, in sentences."""
    servers = geometry.for_servers()
    found = [
        f"The folder's processor files hold the pixel limits of training ({servers.min_pixels:,} to "
        f"{servers.max_pixels:,} px per image); vLLM and transformers read them from there. To change them for one "
        f"server of vLLM: `{pixel_limits(servers)}`."
    ]
    if geometry.scaled_first is not None:
        found.append(
            "It was trained with `data.resize: llamafactory`: images were scaled to that area first and rounded to "
            "whole tokens then, up or down. Servers round down only, so their images can be up to a token smaller in "
            "each direction."
        )
    if wanted.skip_thinking:
        found.append(
            "By itself, the chat template lets an answer begin with a thought. Those that were learned have none, "
            "so prompts must leave it out: `enable_thinking=False` for the template, or in each request "
            '`"chat_template_kwargs": {"enable_thinking": false}`.'
        )
    if wanted.skip_thinking and wanted.effort is not None:
        found.append(
            "Where thinking is turned off, this chat template leaves out an instruction that was there in training; "
            f"for the same prompt, begin the system text with it: `{wanted.effort}`"
        )
    if wanted.shrunk:
        found.append(
            "In training, images of long samples were made smaller to keep the sample within its budget. A server "
            "takes every image at the limit per image: send such images already small, or lower `max_pixels`. "
            "`--max-model-len` counts every image at that limit."
        )
    if wanted.tokens + wanted.new_tokens > wanted.context:
        found.append(
            f"The longest sample and its answer would take {wanted.tokens + wanted.new_tokens:,} tokens; the model's "
            f"positions end at {wanted.context:,}."
        )
    return found


def adapter_note(adapters: Adapters | None) -> list[str]:
    """What to know about serving the run's adapters beside their base, in sentences."""
    if adapters is None:
        return []
    if adapters.obstacle is not None:
        return [f"{adapters.obstacle} Serve this folder, into which they are merged."]
    said = (
        "The adapters can also be served unmerged, beside their base (`serving/serve.sh adapters`): vLLM adds them in "
        "the precision it computes in, while this folder holds them merged in float32 and rounded once. Pixel limits "
        "and chat template are options there, since the base's folder holds its own."
    )
    tower = (
        " Some of the adapters lie in the vision tower or its projector, which vLLM leaves out unless told "
        "`--enable-tower-connector-lora` (experimental)."
    )
    return [said + tower * adapters.tower]
