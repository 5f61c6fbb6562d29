"""The commands that serve an exported folder, with the numbers that its data asks for."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from triptych.data.corpus import Corpus
from triptych.data.geometry import Geometry


@dataclass(frozen=True, slots=True)
class Demands:
    """What the samples of a run ask of a server."""

    images: int
    """Most images of a sample."""
    tokens: int
    """Longest sample as a server sees it, tokens: with its pictures at the limits per picture."""
    new_tokens: int
    """Longest answer, tokens."""
    shrunk: bool
    """Whether the run made pictures smaller than that to keep a budget of the sample; a server does not."""
    context: int | None
    """Longest sequence that the model's positions allow, tokens."""

    @property
    def length(self) -> int:
        """Tokens of the longest prompt and its answer."""
        return (
            self.tokens + self.new_tokens if self.context is None else min(self.tokens + self.new_tokens, self.context)
        )


def demands(
    corpora: Iterable[Corpus], geometry: Geometry, config: dict[str, Any], *, new_tokens: int, shrunk: bool
) -> Demands:
    """What the samples of ``corpora`` ask of a server.

    Where budgets of the sample made pictures smaller, their tokens at a server are not known without measuring anew;
    then every picture counts as many as ``geometry`` allows one.
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
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    return Demands(images, tokens, new_tokens, shrunk, (text or config).get("max_position_embeddings"))


def vllm(target: str, wanted: Demands) -> str:
    """``vllm serve`` of a folder or hub name."""
    lines = [f"vllm serve {shlex.quote(target)}"]
    if wanted.images:
        # Room for videos, which these models also take, would cost the server memory.
        lines.append(f"--limit-mm-per-prompt '{json.dumps({'image': wanted.images, 'video': 0})}'")
    lines.append(f"--max-model-len {wanted.length}")
    return " \\\n  ".join(lines)


def transformers(target: str) -> str:
    """``transformers serve`` of a folder or hub name."""
    return f"transformers serve {shlex.quote(target)}"


def pixel_limits(geometry: Geometry) -> str:
    """The option that makes vLLM use other pixel limits than those in the folder."""
    limits = {"min_pixels": geometry.min_pixels, "max_pixels": geometry.max_pixels}
    return f"--mm-processor-kwargs '{json.dumps(limits)}'"


def notes(wanted: Demands, geometry: Geometry) -> list[str]:
    """What whoever serves the model should know, in sentences."""
    found = [
        f"The folder's processor files hold the pixel limits of training ({geometry.min_pixels:,} to "
        f"{geometry.max_pixels:,} px per picture); vLLM and transformers read them from there. To change them for one "
        f"server of vLLM: `{pixel_limits(geometry)}`."
    ]
    if wanted.shrunk:
        found.append(
            "In training, pictures of long samples were made smaller to keep the sample within its budget. A server "
            "takes every picture at the limit per picture: send such pictures already small, or lower `max_pixels`. "
            "`--max-model-len` counts every picture at that limit."
        )
    if wanted.context is not None and wanted.tokens + wanted.new_tokens > wanted.context:
        found.append(
            f"The longest sample and its answer would take {wanted.tokens + wanted.new_tokens:,} tokens; the model's "
            f"positions end at {wanted.context:,}."
        )
    return found
