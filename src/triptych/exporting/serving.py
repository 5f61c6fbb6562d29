"""The commands that serve an exported folder, with the numbers that its data asks for."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from triptych.corpus.corpus import Corpus
from triptych.exporting.generation import GREEDY
from triptych.images.geometry import Geometry
from triptych.images.traits import Trait, said
from triptych.sources.records import Source
from triptych.text.template import Template

LOOKED_AT = 2_000
"""Samples of each split whose answers are looked at for thoughts."""


@dataclass(frozen=True, slots=True)
class ServingNeeds:
    """What the samples of a run ask of a server."""

    images: int
    """Most images of a sample."""
    tokens: int
    """Longest sample as a server sees it, tokens: with its images at the limits per image."""
    new_tokens: int
    """Longest answer, tokens."""
    shrunk: bool
    """Whether the run made images smaller than that to keep a budget of the sample; a server does not."""
    context: int
    """Longest sequence that the model's positions allow, tokens."""
    skip_thinking: bool
    """Whether prompts must be told to leave thinking out, since no answer that was learned has any."""
    effort: str | None = None
    """What the chat template puts before the system text, and leaves out where thinking is turned off."""

    @property
    def length(self) -> int:
        """Tokens of the longest prompt and its answer."""
        return min(self.tokens + self.new_tokens, self.context)


def demands(
    corpora: Collection[Corpus],
    template: Template,
    geometry: Geometry,
    positions: int,
    *,
    new_tokens: int,
    shrunk: bool,
) -> ServingNeeds:
    """What the samples of ``corpora`` ask of a server; ``positions`` is the longest sequence that the model takes.

    Where budgets of the sample made images smaller, their tokens at a server are not known without measuring again;
    then every image counts as many as ``geometry`` allows one.
    """
    images = tokens = 0
    largest = geometry.max_pixels // geometry.factor**2
    for corpus in corpora:
        lengths = corpus.lengths.tokens
        if shrunk:
            seen = corpus.lengths.patches // geometry.merge_size**2
            lengths = lengths - seen + np.maximum(seen, corpus.image_counts * largest)
        tokens = max(tokens, int(lengths.max()))
        images = max(images, int(corpus.image_counts.max()))
    skip = _skip_thinking(corpora, template)
    return ServingNeeds(images, tokens, new_tokens, shrunk, positions, skip, template.style.effort)


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


def _skip_thinking(corpora: Iterable[Corpus], template: Template) -> bool:
    if not (template.style.skips_thinking and template.style.thinks_by_default):
        return False
    looked_at = (corpus.encoded(index) for corpus in corpora for index in range(min(len(corpus), LOOKED_AT)))
    return not any(map(template.thinks, looked_at))


def vllm(target: str, wanted: ServingNeeds) -> str:
    """``vllm serve`` of a folder or hub name."""
    lines = [f"vllm serve {shlex.quote(target)}"]
    if wanted.images:
        # Room for videos, which these models also take, would cost the server memory.
        lines.append(f"--limit-mm-per-prompt '{json.dumps({'image': wanted.images, 'video': 0})}'")
    lines.append(f"--max-model-len {wanted.length}")
    # The folder's own file says the same; the option holds also where it is not read.
    lines.append(f"--override-generation-config '{json.dumps(GREEDY)}'")
    if wanted.skip_thinking:
        lines.append(f"--default-chat-template-kwargs '{json.dumps({'enable_thinking': False})}'")
    return " \\\n  ".join(lines)


def transformers(target: str) -> str:
    """``transformers serve`` of a folder or hub name."""
    return f"transformers serve {shlex.quote(target)}"


def chat(target: str, wanted: ServingNeeds) -> str:
    """``triptych chat`` with a folder or hub name."""
    return f"triptych chat {shlex.quote(target)}{' --no-thinking' if wanted.skip_thinking else ''}"


def pixel_limits(geometry: Geometry) -> str:
    """The option that makes vLLM use other pixel limits than those in the folder."""
    limits = {"min_pixels": geometry.min_pixels, "max_pixels": geometry.max_pixels}
    return f"--mm-processor-kwargs '{json.dumps(limits)}'"


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
