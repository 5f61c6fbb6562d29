"""The device that a run is planned for: the one here, or a GPU that is named by its memory or model."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from triptych.errors import ConfigError
from triptych.forward.attention import AttentionSupport, find_attention_support
from triptych.forward.flops import PEAKS
from triptych.model.loading import choose_precision
from triptych.run.settings import ModelSettings

GIB = 2**30
USABLE = 0.92
"""Share of a GPU's memory that tensors can have: the rest goes to CUDA itself, its kernels and fragmentation."""

# Memory, GiB -> a usual GPU of this size and its dense bfloat16 rate from the maker's data sheet, FLOP/s.
SIZES: dict[int, tuple[str, float]] = {
    12: ("RTX 4070", 5.8e13),
    16: ("RTX 4080", 9.7e13),
    24: ("RTX 4090", 1.65e14),
    48: ("L40S", 3.62e14),
    80: ("A100", 3.12e14),
    141: ("H200", 9.89e14),
}
# Names that --gpu takes beside a size.
MEMORY = {"4070": 12, "4080": 16, "3090": 24, "4090": 24, "A10": 24, "L4": 24, "L40S": 48, "A100": 80, "H100": 80}
MEMORY |= {"H200": 141, "B200": 180}


@dataclass(frozen=True, slots=True)
class Target:
    """What a run is planned for."""

    name: str
    """For people"""
    memory: int | None
    """Bytes; None where it is not compared, on a CPU"""
    precision: torch.dtype
    support: AttentionSupport
    peak: float | None
    """FLOP/s of dense products in bfloat16; None where it is not known"""
    here: bool
    """Whether it is the device of this machine"""

    @property
    def usable(self) -> int | None:
        """Bytes that tensors can have."""
        return None if self.memory is None else int(self.memory * USABLE)


def target_here(settings: ModelSettings) -> Target:
    """The GPU of this machine, or its CPU.

    Raises:
        ConfigError: if the GPU lacks the precision that is asked for.
    """
    precision = choose_precision(settings)
    if not torch.cuda.is_available():
        return Target("the CPU", None, precision, AttentionSupport("cpu"), None, here=True)
    device = torch.device("cuda")
    name = torch.cuda.get_device_name()
    memory = torch.cuda.get_device_properties(device).total_memory
    peak = next((peak for key, peak in PEAKS.items() if key in name), None)
    return Target(name, memory, precision, find_attention_support(device), peak, here=True)


def named_target(text: str, settings: ModelSettings) -> Target:
    """The GPU that ``text`` names, by its memory (``24GB``) or its model (``H100``).

    Raises:
        ConfigError: if it names none.
    """
    precision = torch.float32 if settings.precision == "float32" else torch.bfloat16
    support = AttentionSupport("cuda", (8, 9), frozenset({"varlen"}))
    size = re.fullmatch(r"(\d+)\s*(?:gi?b?)?", text.strip(), re.IGNORECASE)
    if size:
        gigabytes = int(size[1])
        if not 4 <= gigabytes <= 512:
            raise ConfigError(f"--gpu {text}: give the memory of one GPU in GB, such as 24GB")
        nearest = min(SIZES, key=lambda known: abs(known - gigabytes))
        example, peak = SIZES[nearest]
        return Target(f"{gigabytes} GB GPU (as {example})", gigabytes * GIB, precision, support, peak, here=False)
    name = next((key for key in sorted(MEMORY, key=len, reverse=True) if key.lower() in text.lower()), None)
    if name is None:
        known = ", ".join([*(f"{size}GB" for size in SIZES), *MEMORY])
        raise ConfigError(f"--gpu {text}: not known; give its memory, such as 24GB, or one of: {known}")
    peak = PEAKS.get(name) or next(peak for example, peak in SIZES.values() if name in example)
    return Target(f"{name} ({MEMORY[name]} GB)", MEMORY[name] * GIB, precision, support, peak, here=False)


def find_target(gpu: str | None, settings: ModelSettings) -> Target:
    """The GPU that is named, or the device here.

    Raises:
        ConfigError: as ``named_target`` and ``target_here``.
    """
    return target_here(settings) if gpu is None else named_target(gpu, settings)
