"""Every setting of the run file has a fate when it changes between stop and resume; none can be forgotten."""

from __future__ import annotations

import json
import re
import shutil
import types
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

import tiny
from cli_server import Server
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


# Another value for every setting, and what else must be set for the two to go together.
LORA = ("model.train=lora",)
PACKED = ("batch.samples=null", "batch.tokens=4096")
CHANGED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "model.path": ("other", ()), "model.train": ("lora", ()), "model.freeze": (["vision"], ()),
    "model.full": (["merger"], LORA), "model.lora.rank": (4, ()), "model.lora.alpha": (1.5, ()),
    "model.lora.dropout": (0.5, ()), "model.lora.targets": (["q_proj"], ()), "model.lora.rslora": (True, LORA),
    "model.lora.dora": (True, LORA), "model.lora.experts": (True, LORA), "model.adapter": ("/adapter", ()),
    "model.precision": ("bfloat16", ()), "model.attention": ("eager", ()),
    "data.train.path": ("/e.json", ()), "data.train.media_dir": ("/media", ()), "data.train.confine": (True, ()),
    "data.train.columns": ({"images": "photos"}, ()), "data.train.tags": ({"role": "speaker"}, ()),
    "data.train.mark": ("<img>", ()), "data.train.marks": ("first", ()), "data.train.roles": ("merge", ()),
    "data.train.choice": ({"question": "q"}, ()), "data.train.ignore": (["note"], ()),
    "data.train.loss_weight": (2.0, ()), "data.train.weight": (2.0, ()), "data.train.epochs": (2.0, ()),
    "data.train.max_samples": (3, ()), "data.train.first": (3, ()), "data.eval": ([{"path": "/v.json"}], ()),
    "data.hold_out": (0.5, ()), "data.hold_out_by": ("rows", ("data.hold_out=0.5",)),
    "data.system": ("Be brief.", ()), "data.min_pixels": (100, ()),
    "data.max_pixels": (6000, ()), "data.resize": ("llamafactory", ("data.max_pixels=6000",)),
    "data.sample_image_tokens": (8, ()), "data.max_tokens": (200, ()), "data.supervise": ("last", ()),
    "data.too_long": ("drop", ()), "data.on_error": ("skip", ()), "data.allow_remote": (True, ()),
    "data.allow_private": (True, ("data.allow_remote=true",)), "data.decode": ("fast", ()), "data.workers": (1, ()),
    "data.prefetch_mb": (64, ()), "data.stall_seconds": (60.0, ()),
    "batch.samples": (4, ()), "batch.tokens": (512, ("batch.samples=null",)), "batch.patches": (64, PACKED),
    "batch.group_similar": (True, PACKED), "batch.share": ("on", PACKED), "batch.auto": (True, ("batch.samples=null",)),
    "train.epochs": (3, ()), "train.learning_rate": (0.5, ()), "train.part_learning_rates": ({"vision": 1e-4}, ()),
    "train.rows_per_step": (4, ()), "train.average": ("rows", ()), "train.shuffle": (False, ()),
    "train.schedule": ("linear", ()), "train.warmup": (0.5, ()), "train.weight_decay": (0.1, ()),
    "train.max_grad_norm": (0.5, ()), "train.gradient_checkpointing": (True, ()), "train.compile": (True, ()),
    "train.logits_mb": (1, ()), "train.feature_cache": ("off", ()), "train.feature_cache_gb": (1.0, ()),
    "train.seed": (1, ()), "train.max_steps": (5, ()), "train.log_every": (3, ()), "train.save_every": (2, ()),
    "train.keep_checkpoints": (9, ()), "train.eval_every": (4, ()), "eval.max_new_tokens": (4, ()),
    "eval.batch_size": (2, ()), "eval.limit": (2, ()), "eval.scorers": (["contains"], ()),
    "eval.by": (["source"], ()),
    "data.train.min_pixels": (200, ()), "data.train.max_pixels": (9000, ()),
    "train.metric": ("exact_match", ("data.hold_out=0.5",)), "train.patience": (3, ("data.hold_out=0.5",)),
    "train.show.samples": (2, ()), "train.show.max_new_tokens": (8, ()), "train.show.to_trackers": ("answers", ()),
    "train.hf.optim": ("adafactor", ()), "train.hf.report_to": ("none", ()), "output": ("/p", ()),
}  # fmt: skip


def override(name: str, value: Any) -> str:
    """As it is given on the command line."""
    return f"{name.replace('data.train.', 'data.train.0.')}={json.dumps(value)}"


def test_every_setting_is_changed_here() -> None:
    assert set(NAMES) - set(CHANGED) == {"train.hf"}, "new settings: give another value in CHANGED"


@pytest.mark.parametrize("name", CHANGED)
def test_a_changed_setting_is_applied_or_refused_with_both_values(name: str) -> None:
    value, others = CHANGED[name]
    before, after = run_file.from_mapping(BASE), run_file.from_mapping(BASE, [*others, override(name, value)])
    shown = name.replace("data.train.", "data.train.0.")
    found = {change.name: change for change in changed_settings.changes(before, after)}
    assert set(found) == {shown, *(other.partition("=")[0] for other in others)}
    change = found[shown]
    if name not in ("data.train.choice", "data.eval"):  # written out in full
        assert change.new == value
    if any(other.fate == "refused" for other in found.values()):
        with pytest.raises(ConfigError) as error:
            changed_settings.settle(before, after, "checkpoint-3")
        assert (str(change) in str(error.value)) == (change.fate == "refused")
    else:
        assert changed_settings.settle(before, after, "checkpoint-3") == list(found.values())
        assert any(str(change) in line for line in changed_settings.lines(list(found.values())))


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


@pytest.fixture(scope="module")
def half_done(server: Server, small_model_dir: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run file of a run that was stopped after six of eight steps."""
    folder = tmp_path_factory.mktemp("half")
    train = {"save_every": 6, "keep_checkpoints": None}
    data = {"train": [{"path": str(dataset)}], "workers": 0}
    path = tiny.write_run(folder, small_model_dir, dataset, batch={"samples": 2}, data=data, train=train)
    code, err = server.run("train", str(path))
    assert code == 0, err
    for later in ("checkpoint-8", "final"):
        shutil.rmtree(folder / "run" / later)
    return path


WALKED = [name for name in CHANGED if name != "output"]
REFUSED = [name for name in WALKED if changed_settings.fate(name)[0] == "refused"]


def resumed(server: Server, path: Path, name: str, *more: str) -> tuple[int, str, list[str]]:
    """Exit status and standard error of going on with one changed setting, and the overrides."""
    value, others = CHANGED[name]
    options = [*others, override(name, value), *more]
    code, err = server.run("train", str(path), "--resume", *options)
    assert "Traceback" not in err
    return code, err, options


@pytest.mark.slow
def test_a_resumed_run_refuses_by_name_what_cannot_change(server: Server, half_done: Path) -> None:
    files = {file: file.read_bytes() for file in half_done.parent.joinpath("run").glob("*") if file.is_file()}
    for name in REFUSED:
        code, err, _ = resumed(server, half_done, name)
        assert code == 1, name
        assert "these settings cannot change between" in err, name
        shown = override(name, None).partition("=")[0]
        assert re.search(rf"\n  {re.escape(shown)}: \S.* -> \S.* \(", err), err
        assert all(file.read_bytes() == content for file, content in files.items()), f"{name}: nothing is written"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in WALKED if name not in REFUSED])
def test_a_resumed_run_says_what_changed_and_goes_on_with_it(
    server: Server, half_done: Path, tmp_path: Path, name: str
) -> None:
    output = tmp_path / "run"
    shutil.copytree(half_done.parent / "run", output)
    before = (output / "run.yaml").read_text()
    code, err, options = resumed(server, half_done, name, f"output={output}")
    if any(changed_settings.fate(option.partition("=")[0])[0] == "refused" for option in options):
        pytest.skip("it goes with a setting that cannot change")
    assert f"changed since the checkpoint: {override(name, None).partition('=')[0]}: " in err
    if code == 0:
        assert run_file.load(output / "run.yaml") == run_file.load(half_done, options)
    else:  # a path that is not there, data that is another one: said, and nothing is changed
        assert re.search(r"no such file|not those|changed|needs|cannot", err), err
        assert (output / "run.yaml").read_text() == before
