"""Fine-tune Qwen-VL models on samples with several images; the plan is exact before any pixel is decoded."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from triptych.api import (
        Answer,
        Chat,
        CheckReport,
        Run,
        RunPlan,
        Sample,
        Samples,
        Source,
        TrainResult,
        batch,
        check,
        encode,
        evaluate,
        export,
        load_chat,
        load_run,
        plan,
        train,
    )

__all__ = [
    "Answer",
    "Chat",
    "CheckReport",
    "Run",
    "RunPlan",
    "Sample",
    "Samples",
    "Source",
    "TrainResult",
    "batch",
    "check",
    "encode",
    "evaluate",
    "export",
    "load_chat",
    "load_run",
    "plan",
    "train",
]

try:
    __version__ = version("triptych")
except PackageNotFoundError:  # a source tree on sys.path without an installation
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    """Import the API when it is first asked for: a command that does not need it starts at once."""
    if name in __all__:
        return getattr(import_module("triptych.api"), name)
    raise AttributeError(f"module 'triptych' has no attribute {name!r}")
