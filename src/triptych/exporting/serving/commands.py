"""The commands that serve an exported folder, with the numbers that its data asks for."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

from triptych.exporting.generation import GREEDY
from triptych.exporting.serving.needs import ServingNeeds
from triptych.images.geometry import Geometry

THINKING_OFF = {"enable_thinking": False}


def vllm(target: str, wanted: ServingNeeds) -> str:
    """``vllm serve`` of a folder or hub name."""
    return joined([f"vllm serve {shlex.quote(target)}", *vllm_options(wanted)])


def vllm_options(wanted: ServingNeeds) -> list[str]:
    """Options of ``vllm serve``, as a shell reads them."""
    options = []
    if wanted.images:
        # Room for videos, which these models also take, would cost the server memory.
        options.append(f"--limit-mm-per-prompt {quoted({'image': wanted.images, 'video': 0})}")
    options.append(f"--max-model-len {wanted.length}")
    # The folder's own file says the same; the option holds also where it is not read.
    options.append(f"--override-generation-config {quoted(GREEDY)}")
    if wanted.skip_thinking:
        options.append(f"--default-chat-template-kwargs {quoted(THINKING_OFF)}")
    return options


def transformers(target: str, wanted: ServingNeeds) -> str:
    """``transformers serve`` of a folder or hub name."""
    return joined([f"transformers serve {shlex.quote(target)}", *transformers_options(wanted)])


def transformers_options(wanted: ServingNeeds) -> list[str]:
    """Options of ``transformers serve``, as a shell reads them."""
    return [f"--chat-template-kwargs {quoted(THINKING_OFF)}"] if wanted.skip_thinking else []


def chat(target: str, wanted: ServingNeeds) -> str:
    """``triptych chat`` with a folder or hub name."""
    return f"triptych chat {shlex.quote(target)}{' --no-thinking' if wanted.skip_thinking else ''}"


def pixel_limits(geometry: Geometry) -> str:
    """The option that makes vLLM use other pixel limits than those in the folder."""
    return f"--mm-processor-kwargs {quoted({'min_pixels': geometry.min_pixels, 'max_pixels': geometry.max_pixels})}"


def quoted(value: dict[str, Any]) -> str:
    """An object as JSON, in quotation marks for a shell."""
    return shlex.quote(json.dumps(value))


def joined(parts: Sequence[str]) -> str:
    """A command on several lines, one option each."""
    return " \\\n  ".join(parts)
