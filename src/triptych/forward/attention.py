"""Which attention a run computes with: what its device, its packages, its model and its precision allow, and why."""

from __future__ import annotations

import importlib.util
import inspect
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils.import_utils import is_flash_attn_2_available, is_flash_attn_3_available

from triptych.errors import ConfigError, ModelError
from triptych.family.shapes import INDEXED, SLIDING, ModelShapes, read_shapes
from triptych.forward.attention_kernels import (
    SAMPLE_SDPA,
    SHARED_FLASH,
    VARLEN,
    VISION_VARLEN,
    PathBounds,
    SampleBounds,
    register,
)
from triptych.run.settings import AttentionName

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from triptych.forward.batch import Batch, SamplePaths

# The setting -> transformers' names of the implementation of the language layers and of the vision tower.
IMPLEMENTATIONS: dict[AttentionName, tuple[str, str]] = {
    "flash_attention_3": ("flash_attention_3", "flash_attention_3"),
    "flash_attention_2": ("flash_attention_2", "flash_attention_2"),
    "varlen": (VARLEN, VISION_VARLEN),
    "sample_sdpa": (SAMPLE_SDPA, "sdpa"),
    "sdpa": ("sdpa", "sdpa"),
    "eager": ("eager", "eager"),
}
# In the order of preference.
ON_CUDA: tuple[AttentionName, ...] = ("flash_attention_3", "flash_attention_2", "varlen", "sample_sdpa", "sdpa")
ELSEWHERE: tuple[AttentionName, ...] = ("sample_sdpa", "sdpa")
# Compute capability that kernels were written for: the lowest, and the first that is too new (None: none is).
CAPABILITIES: dict[AttentionName, tuple[tuple[int, int], tuple[int, int] | None]] = {
    "flash_attention_3": ((9, 0), (10, 0)),
    "flash_attention_2": ((8, 0), None),
    "varlen": ((8, 0), None),
}
LARGEST_HEAD = 256
"""Width of a head that torch's flash attention takes; it must be a multiple of 8."""


@dataclass(frozen=True, slots=True)
class AttentionSupport:
    """What there is to compute attention with."""

    device: str
    """Its type, ``cuda`` or other"""
    capability: tuple[int, int] | None = None
    """Compute capability of a CUDA device"""
    installed: frozenset[AttentionName] = frozenset()
    """Of ``flash_attention_3``, ``flash_attention_2`` and ``varlen``, what this Python can import"""


def find_attention_support(device: torch.device) -> AttentionSupport:
    """What ``device`` and this Python offer."""
    if device.type != "cuda":
        return AttentionSupport(device.type)
    found: dict[AttentionName, bool] = {
        "flash_attention_3": is_flash_attn_3_available(),
        "flash_attention_2": is_flash_attn_2_available(),
        "varlen": _has_varlen(),
    }
    installed = frozenset(name for name, there in found.items() if there)
    return AttentionSupport(device.type, torch.cuda.get_device_capability(device), installed)


def _has_varlen() -> bool:
    """Whether this torch has its varlen attention, with the arguments of torch 2.13; older releases differ."""
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return False
    from torch.nn.attention.varlen import varlen_attn

    arguments = inspect.signature(varlen_attn).parameters.keys()
    return torch.backends.cuda.is_flash_attention_available() and {"window_size", "scale", "enable_gqa"} <= arguments


@dataclass(frozen=True, slots=True)
class Attention:
    """The attention of a run."""

    name: AttentionName
    """As in ``model.attention``"""
    text: str
    """transformers' name of the implementation of the language layers"""
    vision: str
    """The same of the vision tower"""
    reason: str = ""
    """Why none that is usually better; for people"""
    shares: bool = False
    """Whether a flash attention of a package is called through our own glue, which knows samples that share a start"""

    def __str__(self) -> str:
        return f"attention: {self.name}" + (f" ({self.reason})" if self.reason else "")

    def install(self, model: PreTrainedModel) -> None:
        """Let ``model``, as transformers loaded it, compute with this attention."""
        register()
        model.set_attn_implementation({"text_config": self.text, "vision_config": self.vision})

    def arguments(self, row: Batch) -> dict[str, Any]:
        """What the model is told about the samples of a row, besides the position ids."""
        if row.paths.shared:
            return {"sample_bounds": self._shared(row, row.paths)}
        if self.name == "varlen" or self.shares:
            return {"sample_bounds": SampleBounds(row.cu_seqlens, row.max_seqlen, ())}
        if self.name == "sample_sdpa":
            return {"sample_bounds": SampleBounds(row.cu_seqlens, row.max_seqlen, row.paths.own)}
        return {}

    def _shared(self, row: Batch, paths: SamplePaths) -> SampleBounds:
        """
        Raises:
            ModelError: if this attention knows no samples that share their start.
        """
        device = row.input_ids.device
        masks: tuple[torch.Tensor | None, ...] = ()
        if self.name == "sample_sdpa":
            masks = tuple(map(partial(_seen, device=device), paths.own, paths.lengths))
        elif self.name != "varlen" and not self.shares:
            raise ModelError(f"{self.name} attention knows no samples that share their start; use another, or auto")
        starts = torch.tensor([0, *accumulate(paths.lengths)], dtype=torch.int32).to(device, non_blocking=True)
        keys = PathBounds(paths.tokens, starts, max(paths.lengths), paths.lengths, masks)
        return SampleBounds(row.cu_seqlens, row.max_seqlen, paths.own, keys)


def _seen(own: int, length: int, device: torch.device) -> torch.Tensor | None:
    """(own, length) what the last ``own`` tokens of a sample see of it; None where they are all of it."""
    return None if own == length else torch.ones(own, length, dtype=torch.bool, device=device).tril(length - own)


MASKED_SDPA = Attention("sdpa", *IMPLEMENTATIONS["sdpa"])


def install_attention(
    model: PreTrainedModel,
    setting: AttentionName,
    device: torch.device,
    precision: torch.dtype,
    *,
    recurrent: bool,
    shares: bool = False,
) -> Attention:
    """Choose the attention to train ``model`` with on ``device``, and let the model compute with it.

    ``model`` is as transformers loaded it, ``shares`` says whether samples share their start; for the other arguments
    and what is raised see `choose_attention`.
    """
    shapes = read_shapes(model.config.to_dict())
    attention = choose_attention(setting, find_attention_support(device), shapes, precision, recurrent=recurrent)
    if shares and attention.name in SHARED_FLASH:
        attention = replace(attention, text=SHARED_FLASH[attention.name], shares=True)
    attention.install(model)
    return attention


def keeps_mask(name: AttentionName) -> bool:
    """Whether every language layer keeps a mask of T x T values for the backward pass."""
    return name in ("sdpa", "eager")


def choose_attention(
    setting: AttentionName,
    support: AttentionSupport,
    shapes: ModelShapes,
    precision: torch.dtype,
    *,
    recurrent: bool = False,
) -> Attention:
    """The attention to train with.

    Args:
        setting: ``model.attention``.
        support: what there is.
        shapes: of the model.
        precision: of the arithmetic.
        recurrent: whether the model is told where samples start under transformers' own names (see isolation.py),
            which the vision tower needs for the bounds of images when it takes them in one call.

    Raises:
        ConfigError: if ``setting`` names what cannot work here.
    """
    if setting != "auto":
        reason = _why_not(setting, support, shapes, precision)
        if reason:
            raise ConfigError(f"model.attention: {setting} {reason}; use another, or auto")
        return _attention(setting, "as set", recurrent)
    passed: list[str] = []
    for name in ON_CUDA if support.device == "cuda" else ELSEWHERE:
        reason = _why_not(name, support, shapes, precision)
        if not reason:
            break
        passed.append(f"{name} {reason}")
    return _attention(name, "; ".join(passed), recurrent)


def _attention(name: AttentionName, reason: str, recurrent: bool) -> Attention:
    text, vision = IMPLEMENTATIONS[name]
    return Attention(name, text, "sdpa" if recurrent and "flash" in vision else vision, reason)


def _why_not(name: AttentionName, support: AttentionSupport, shapes: ModelShapes, precision: torch.dtype) -> str:
    """Why ``name`` cannot be used, or nothing."""
    if INDEXED in shapes.language.kinds and not keeps_mask(name):
        return "makes no mask, which this model's layers add their index to"
    if name in ("varlen", "sample_sdpa"):
        if SLIDING in shapes.language.kinds:
            return "has no sliding windows, which this model's layers use"
        if name == "sample_sdpa":
            return ""
    if name not in CAPABILITIES:
        return ""
    if support.device != "cuda":
        return "needs a CUDA device"
    if name not in support.installed:
        return "needs torch 2.13 or newer" if name == "varlen" else "is not installed"
    lowest, too_new = CAPABILITIES[name]
    capability = support.capability or (0, 0)
    if capability < lowest or (too_new and capability >= too_new):
        return f"is not written for compute capability {capability[0]}.{capability[1]}"
    if precision not in (torch.bfloat16, torch.float16):
        return f"computes in bfloat16 or float16, not in {str(precision).removeprefix('torch.')}"
    if name != "flash_attention_2" and shapes.language.attention_dropout:
        return "has no dropout, which this model's attention uses"
    if name == "varlen":
        widths = (shapes.language.head_width, shapes.vision.head_width)
        odd = [width for width in widths if width % 8 or width > LARGEST_HEAD]
        return f"takes no heads of width {odd[0]}" if odd else ""
    return ""
