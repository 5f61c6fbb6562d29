"""Every setting of a run: its meaning, its default, its limits.

Takes the values of a run file; gives a checked, unchanging `RunSettings`.

    base <- model, data, training <- run        errors: what is wrong with a value, in words
"""

from triptych.run.settings.data import SourceSettings
from triptych.run.settings.model import AttentionName, LoraSettings, ModelSettings
from triptych.run.settings.run import RunSettings, json_schema
from triptych.run.settings.training import BatchSettings, EvalSettings, ShowSettings, TrainSettings

__all__ = [
    "AttentionName",
    "BatchSettings",
    "EvalSettings",
    "LoraSettings",
    "ModelSettings",
    "RunSettings",
    "ShowSettings",
    "SourceSettings",
    "TrainSettings",
    "json_schema",
]
