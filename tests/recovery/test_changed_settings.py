"""Every setting of the run file has a fate when it changes between stop and resume; none can be forgotten."""

from __future__ import annotations

import types
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from triptych.errors import ConfigError
from triptych.recovery import changed_settings
from triptych.run import run_file
from triptych.run.settings import RunSettings


def walk(group: type[BaseModel], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted name and type of every setting."""
    found: list[tuple[str, Any]] = []
    for name, field in group.model_fields.items():
        kind = field.annotation
        if f"{prefix}{name}" == "data.train":
            found += walk(get_args(kind)[0], f"{prefix}{name}.")
        elif isinstance(kind, type) and not isinstance(kind, types.GenericAlias) and issubclass(kind, BaseModel):
            found += walk(kind, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", kind))
    return found


NAMES = [name for name, _ in walk(RunSettings)]
BASE: dict[str, Any] = {
    "model": {"path": "m"},
    "data": {"train": [{"path": "d.json"}]},
    "batch": {"samples": 1},
    "output": "o",
}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "train.hf"])
def test_every_setting_has_a_fate(name: str) -> None:
    assert name in changed_settings.FATES, f"{name}: say in recovery/changed_settings.py what becomes of a change"


def test_every_fate_is_of_a_setting() -> None:
    assert set(changed_settings.FATES) - set(NAMES) <= {"data.train", "model.adapter"}


CHANGED: dict[str, Any] = {
    "model.path": "other", "model.train": "lora", "model.freeze": ["vision"], "model.lora.rank": 4,
    "model.lora.alpha": 1.5, "model.precision": "float32", "data.train.0.path": "/e.json", "data.train.0.epochs": 2.0,
    "data.min_pixels": 100, "data.on_error": "skip", "train.learning_rate": 0.5, "train.epochs": 3,
    "train.schedule": "linear", "train.seed": 1, "train.rows_per_step": 4, "train.log_every": 3,
    "train.hf.optim": "adafactor", "train.hf.report_to": "none", "output": "/p",
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_a_changed_setting_is_applied_or_refused_with_both_values(name: str) -> None:
    before = run_file.from_mapping(BASE)
    after = run_file.from_mapping(BASE, [f"{name}={CHANGED[name]}"])
    (change,) = changed_settings.changes(before, after)
    assert change.name == name
    assert change.new == CHANGED[name]
    if change.fate == "refused":
        with pytest.raises(ConfigError, match=name.replace(".", r"\.")) as error:
            changed_settings.settle(before, after, "checkpoint-3")
        assert str(change) in str(error.value)
    else:
        assert changed_settings.settle(before, after, "checkpoint-3") == [change]
        assert str(change) in changed_settings.lines([change])[0]


def test_an_override_of_the_first_start_is_kept_unless_this_one_gives_it() -> None:
    first = ["train.learning_rate=0.5", "model.lora.rank=4"]
    now = run_file.from_mapping(BASE, ["train.learning_rate=0.25"])
    settings, kept = changed_settings.keep_overrides(now, ["train.learning_rate=0.25"], first)
    assert kept == ["model.lora.rank=4"]
    assert settings.train.learning_rate == 0.25
    assert settings.model.lora.rank == 4
    now = run_file.from_mapping(BASE, ["model.lora={rank: 8}"])
    settings, kept = changed_settings.keep_overrides(now, ["model.lora={rank: 8}"], first)
    assert kept == ["train.learning_rate=0.5"]
    assert settings.model.lora.rank == 8
