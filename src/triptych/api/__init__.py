"""The Python API: what the commands do, as functions that print nothing.

``import triptych`` reaches all of it and imports torch only where weights or pixel values are asked for.

    load_run() -> Run -> samples() -> Sample
    check(data) -> CheckReport        plan(run) -> RunPlan
    encode(record, model) -> Sample   batch(run, samples) -> Batch
    train(run) -> TrainResult         evaluate(run) -> Evaluation
    export(checkpoint, to) -> Proof   load_chat(folder) -> Chat
"""

from triptych.api.chat import Answer, Chat, load_chat
from triptych.api.data import Run, Sample, Samples, check, encode, load_run
from triptych.api.memory_source import Source
from triptych.api.training import RunPlan, TrainResult, batch, evaluate, export, plan, train
from triptych.corpus.examine import CheckReport

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
