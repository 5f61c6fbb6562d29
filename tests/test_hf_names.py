"""``train.hf``: every argument of transformers has its effect, or is refused by name with what to do instead."""

import dataclasses
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.training_args import OptimizerNames

import tiny
from triptych.errors import ConfigError
from triptych.run import hf_names, run_file
from triptych.run.settings import RunSettings
from triptych.training.hf_arguments import training_arguments

FIELDS = [field.name for field in dataclasses.fields(TrainingArguments)]
FORMER = set(hf_names.OWNED) | set(hf_names.REFUSED)
# Other values than the default and than Triptych's own, for every argument that can be built without an accelerator.
VALUES: dict[str, Any] = {
    "max_steps": 7,
    "lr_scheduler_kwargs": {"num_cycles": 0.3},
    "optim": "adafactor",
    "optim_args": "relative_step=False",
    "optim_target_modules": ["q_proj"],
    "adam_beta1": 0.8,
    "adam_beta2": 0.9,
    "adam_epsilon": 1e-6,
    "tf32": False,
    "activation_checkpointing_kwargs": {"use_reentrant": True},
    "neftune_noise_alpha": 5.0,
    "torch_empty_cache_steps": 3,
    "logging_first_step": True,
    "log_on_each_node": False,
    "log_level": "error",
    "log_level_replica": "error",
    "report_to": ["wandb"],
    "run_name": "mine",
    "project": "ours",
    "trackio_space_id": "me/space",
    "trackio_bucket_id": "me/bucket",
    "trackio_static_space_id": "me/static",
    "eval_on_start": True,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    "full_determinism": True,
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "ddp_find_unused_parameters": True,
    "ddp_bucket_cap_mb": 3,
    "ddp_timeout": 99,
    "debug": "underflow_overflow",
    "skip_memory_metrics": False,
}
NEED_DEVICES = {"fsdp", "fsdp_config", "deepspeed", "ddp_backend"}
"""Cannot be built in one process without an accelerator; test_distributed.py builds or refuses them."""


def settings_of(hf: dict[str, Any], **groups: Any) -> RunSettings:
    content = {
        "model": {"path": "m", **groups.pop("model", {})},
        "data": {"train": [{"path": "a.json"}], "eval": [{"path": "b.json"}], **groups.pop("data", {})},
        "batch": {"samples": 1},
        "train": {"hf": hf, **groups.pop("train", {})},
        "output": "runs/x",
    }
    return run_file.from_mapping(content)


def check_packages(settings: RunSettings) -> None:
    hf_names.check_packages(settings.train.hf, settings.model.train)


def refused(hf: dict[str, Any], **groups: Any) -> str:
    with pytest.raises(ConfigError) as error:
        settings_of(hf, **groups)
    return str(error.value)


def test_every_argument_is_passed_on_or_refused_by_name() -> None:
    lists = [set(hf_names.PASSED), set(hf_names.OWNED), set(hf_names.REFUSED)]
    assert sum(map(len, lists)) == len(set.union(*lists)), "an argument is in two lists"
    assert set(FIELDS) - set.union(*lists) == set(), "new in transformers: pass it on or refuse it in hf_names.py"
    assert hf_names.PASSED - set(FIELDS) == set(), "transformers has these no more"
    assert set(VALUES) | NEED_DEVICES == hf_names.PASSED


@pytest.mark.parametrize("name", sorted(VALUES))
def test_what_is_passed_on_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    if torch.cuda.is_available():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    built = training_arguments(settings_of({name: VALUES[name]}), torch.float32)
    default = training_arguments(settings_of({}), torch.float32)
    found = getattr(built, name)
    found = [option.value for option in found] if name == "debug" else found
    assert found == ([VALUES[name]] if name == "debug" else VALUES[name])
    if name not in ("use_cpu", "tf32", "dataloader_pin_memory"):  # this machine's own
        assert getattr(default, name) != found


@pytest.mark.parametrize("name", sorted(FORMER))
def test_what_would_have_no_effect_is_refused_with_what_to_do(name: str) -> None:
    said = refused({name: True})
    assert f"`train.hf.{name}`" in said
    assert (hf_names.OWNED.get(name) or hf_names.REFUSED[name]) in said


def test_the_setting_that_is_named_instead_is_there() -> None:
    for name in hf_names.OWNED.values():
        group: Any = RunSettings
        for part in name.split("."):
            if not part.isdecimal():
                assert part in group.model_fields, name
                annotation = group.model_fields[part].annotation
                group = next((a for a in getattr(annotation, "__args__", ()) if isinstance(a, type)), annotation)


def test_all_that_is_wrong_is_said_at_once_and_the_nearest_name_with_it() -> None:
    said = refused({"adam_beta_1": 0.9, "save_steps": 5, "label_smoothing_factor": 0.1})
    assert "did you mean `adam_beta1`?" in said
    assert "use the setting `train.save_every`" in said
    assert "plain cross entropy" in said


def test_optimizers_and_trackers_are_those_of_transformers() -> None:
    assert set(hf_names._OPTIMIZER_NEEDS) == {name.value for name in OptimizerNames}
    assert set(hf_names._TRACKER_NEEDS) == set(INTEGRATION_TO_CALLBACK)
    assert "did you mean 'adamw_torch" in refused({"optim": "adamw_torhc"})
    assert "there is no tracker 'wandbb'" in refused({"report_to": ["wandbb"]})
    assert "within the backward pass" in refused({"optim": "galore_adamw_layerwise"})


def test_the_best_model_needs_evaluation_at_every_save() -> None:
    best = {"load_best_model_at_end": True}
    assert "no evaluation without data.eval" in refused(best, data={"eval": []})
    assert "set both alike" in refused(best, train={"save_every": 10})
    assert "set both alike" in refused(best, train={"save_every": 10, "eval_every": 4})
    assert settings_of(best, train={"save_every": 10, "eval_every": 5})
    assert "set eval_loss" in refused({"metric_for_best_model": "accuracy"})


@pytest.mark.parametrize(
    ("hf", "groups", "says"),
    [
        (
            {"report_to": "wandb"},
            {},
            "train.hf.report_to: wandb needs wandb, which is not installed: pip install wandb",
        ),
        ({"optim": "adamw_bnb_8bit"}, {}, "pip install bitsandbytes>=0.46"),
        ({"deepspeed": {"train_batch_size": 1}}, {}, "train.hf.deepspeed needs deepspeed"),
        ({}, {"model": {"train": "qlora"}}, "model.train: qlora needs bitsandbytes"),
    ],
)
def test_missing_packages_are_named_before_data_is_read(
    monkeypatch: pytest.MonkeyPatch, hf: dict[str, Any], groups: Any, says: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=re.escape(says)):
        check_packages(settings_of(hf, **groups))
    check_packages(settings_of({}))


def test_a_deepspeed_file_that_is_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_names, "_installed", lambda _: True)
    path = tmp_path / "zero.json"
    with pytest.raises(ConfigError, match=r"cannot read .*zero\.json"):
        check_packages(settings_of({"deepspeed": str(path)}))
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"zero\.json' is not valid JSON"):
        check_packages(settings_of({"deepspeed": str(path)}))
    path.write_text(json.dumps({}))
    check_packages(settings_of({"deepspeed": str(path)}))


def test_train_looks_before_it_reads_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data file is not even there, and what is said first is the missing package."""
    from typer.testing import CliRunner

    from triptych.cli import app

    monkeypatch.setattr(hf_names, "_installed", lambda _: False)
    path = tiny.write_run(tmp_path, tmp_path / "no-model", tmp_path / "no-data.json")
    result = CliRunner().invoke(app, ["train", str(path), "train.hf.report_to=wandb"])
    assert "pip install wandb" in str(result.exception)


def test_tensorboard_is_written_once() -> None:
    assert hf_names.passed_on({"report_to": ["tensorboard", "wandb"]})["report_to"] == ["wandb"]
    assert hf_names.passed_on({"report_to": "tensorboard"})["report_to"] == "none"
