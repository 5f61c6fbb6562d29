"""LLaMA-Factory's run files: every key has a row, values become the settings with the same results, errors say what."""

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from commands import said
from triptych.compat.llamafactory.checks import (
    ContradictionError,
    OtherStageError,
    UnknownKeyError,
    UnsupportedKeyError,
)
from triptych.compat.llamafactory.filled import fill
from triptych.compat.llamafactory.keys.table import KEYS
from triptych.compat.llamafactory.translate import Surroundings, Translation, translate
from triptych.compat.loading import open_run, to_yaml
from triptych.errors import ConfigError
from triptych.run import run_file
from triptych.sources.lists.dataset_info import Listed

THEIRS: dict[str, Any] = {
    "model_name_or_path": "model",
    "stage": "sft",
    "do_train": True,
    "dataset": "pairs",
    "template": "qwen2_vl",
    "output_dir": "saves/one",
    "overwrite_output_dir": True,
}
"""The least that trains."""


def translated(config: dict[str, Any] | None = None, world_size: int = 1, **given: Any) -> Translation:
    sources = [Listed({"path": f"data/{name}.json"}) for name in str(given.get("dataset", "pairs")).split(",")]
    held_out = [Listed({"path": "data/val.json"})] if given.get("eval_dataset") else []
    return translate(fill({**THEIRS, **given}), Surroundings(sources, held_out, config, world_size))


def write_theirs(folder: Path, **given: Any) -> Path:
    """A run file, its dataset_info.json, images, records and model; paths start from ``folder``."""
    tiny.write_model(folder / "model")
    data = tiny.write_dataset(folder / "data", 12)
    info = {"pairs": {"file_name": data.name, "formatting": "sharegpt", "columns": COLUMNS}}
    (folder / "data" / "dataset_info.json").write_text(json.dumps(info))
    path = folder / "their.yaml"
    path.write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in {**THEIRS, **given}.items()) + "\n")
    return path


COLUMNS = {"messages": "conversations", "images": "images"}


def test_every_key_has_a_row_that_says_what_becomes_of_it() -> None:
    names = (Path(__file__).parent / "llamafactory_keys.txt").read_text().split()
    assert len(names) == 356
    assert sorted(KEYS) == names
    assert all(len(key.text) > 5 for key in KEYS.values())


def test_defaults_are_those_of_llama_factory() -> None:
    found = translated().settings
    assert found["model"] == {
        "path": "model",
        "train": "lora",
        "freeze": ["vision", "merger"],
        "lora": {"rank": 8, "alpha": 16, "dropout": 0.0, "targets": "all-linear"},
        "precision": "float32",
        "attention": "auto",
    }
    train = found["train"]
    expected = {"epochs": 3, "learning_rate": 5e-5, "rows_per_step": 1, "schedule": "linear", "warmup": 0.0}
    expected |= {"weight_decay": 0.0, "max_grad_norm": 1.0, "gradient_checkpointing": True, "seed": 42}
    expected |= {"log_every": 500, "save_every": 500, "keep_checkpoints": None}
    assert {name: train[name] for name in expected} == expected
    assert found["batch"] == {"samples": 8}
    data = found["data"]
    assert (data["max_tokens"], data["too_long"], data["max_pixels"], data["workers"]) == (2048, "shrink", 589_824, 0)
    assert data["train"] == [{"path": "data/pairs.json", "media_dir": "data"}]
    assert found["output"] == "saves/one"


@pytest.mark.parametrize(
    ("given", "place", "value"),
    [
        ({"finetuning_type": "full"}, "model.train", "full"),
        ({"finetuning_type": "full", "freeze_vision_tower": False}, "model.freeze", ["merger"]),
        ({"freeze_vision_tower": False}, "model.freeze", ["merger"]),
        ({"freeze_multi_modal_projector": False}, "model.freeze", ["vision", "merger"]),
        ({"quantization_bit": 4}, "model.train", "qlora"),
        ({"lora_target": "q_proj, v_proj"}, "model.lora.targets", ["q_proj", "v_proj"]),
        ({"lora_rank": 4}, "model.lora.alpha", 8),
        ({"lora_alpha": 0, "lora_rank": 4}, "model.lora.alpha", 8),
        ({"additional_target": "visual.merger"}, "model.full", ["merger"]),
        ({"additional_target": "visual.merger"}, "model.freeze", ["vision"]),
        ({"bf16": True}, "model.precision", "bfloat16"),
        ({"flash_attn": "fa2"}, "model.attention", "flash_attention_2"),
        ({"adapter_name_or_path": "saves/before"}, "model.adapter", "saves/before"),
        ({"media_dir": "images"}, "data.train.0.media_dir", "images"),
        ({"max_samples": 100}, "data.train.0.first", 100),
        ({"mask_history": True}, "data.supervise", "last"),
        ({"train_on_prompt": True}, "data.supervise", "everything"),
        ({"default_system": ""}, "data.system", ""),
        ({"val_size": 0.1}, "data.hold_out", 0.1),
        ({"val_size": 20}, "data.hold_out", 20),
        ({"val_size": 20}, "data.hold_out_by", "rows"),
        ({"neat_packing": True, "per_device_train_batch_size": 1}, "batch.tokens", 2048),
        ({"neat_packing": True}, "data.too_long", "drop"),
        ({"gradient_accumulation_steps": 4}, "train.rows_per_step", 4),
        ({"warmup_ratio": 0.1}, "train.warmup", 0.1),
        ({"warmup_ratio": 0.1, "warmup_steps": 20}, "train.warmup", 20),
        ({"num_train_epochs": "2.0"}, "train.epochs", 2),
        ({"num_train_epochs": 2.5}, "train.epochs", 2.5),
        ({"max_steps": 7}, "train.max_steps", 7),
        ({"max_steps": 7}, "train.epochs", None),
        ({"disable_shuffling": True}, "train.shuffle", False),
        ({"disable_gradient_checkpointing": True}, "train.gradient_checkpointing", False),
        ({"save_strategy": "epoch"}, "train.save_every", "epoch"),
        ({"save_strategy": False}, "train.save_every", None),
        ({"eval_dataset": "val"}, "train.eval_every", None),
        ({"eval_dataset": "val", "eval_strategy": "steps", "eval_steps": 5}, "train.eval_every", 5),
        ({"eval_dataset": "val", "eval_strategy": "steps", "logging_steps": 3}, "train.eval_every", 3),
        ({"optim": "sgd"}, "train.hf", {"optim": "sgd"}),
        ({"report_to": "none"}, "train.hf", None),
        ({"report_to": "wandb,tensorboard"}, "train.hf.report_to", ["wandb", "tensorboard"]),
        ({"ddp_timeout": 180_000_000}, "train.hf.ddp_timeout", 180_000_000),
        ({"lr_scheduler_kwargs": {"num_cycles": 2}}, "train.hf.lr_scheduler_kwargs", {"num_cycles": 2}),
        ({"max_new_tokens": 64}, "eval.max_new_tokens", 64),
    ],
)
def test_a_key_becomes_the_setting_with_the_same_results(given: dict[str, Any], place: str, value: Any) -> None:
    found: Any = translated(**given).settings
    for name in place.split("."):
        found = found[int(name)] if isinstance(found, list) else found.get(name)
    assert found == value, (given, place)


def test_rows_of_a_step_and_sharding_follow_the_number_of_ranks() -> None:
    found = translated(world_size=4, gradient_accumulation_steps=2, deepspeed="ds.json").settings["train"]
    assert (found["rows_per_step"], found["hf"]) == (8, {"deepspeed": "ds.json"})
    alone = translated(deepspeed="ds.json")
    assert "hf" not in alone.settings["train"]
    assert any("deepspeed" in line for line in alone.notes.dropped)


def test_the_last_layers_learn_under_freeze() -> None:
    config = {"model_type": "qwen2_vl", "num_hidden_layers": 8}
    for layers, freeze in ((2, ["language[:6]", "language[8:]"]), (-3, ["language[:0]", "language[3:]"])):
        found = translated(config, finetuning_type="freeze", freeze_trainable_layers=layers).settings["model"]
        assert (found["train"], found["freeze"]) == ("full", ["vision", "merger", *freeze]), layers
    with pytest.raises(UnsupportedKeyError, match="number of the model's layers"):
        translated(finetuning_type="freeze")


def test_sources_are_weighted_as_they_are_interleaved() -> None:
    found = translated(dataset="a,b", mix_strategy="interleave_over", interleave_probs="0.7, 0.3").settings
    assert [source["weight"] for source in found["data"]["train"]] == [0.7, 0.3]
    even = translated(dataset="a,b", mix_strategy="interleave_under").settings
    assert [source["weight"] for source in even["data"]["train"]] == [1.0, 1.0]
    once = translated(dataset="a,b", mix_strategy="interleave_once").settings
    assert all("weight" not in source for source in once["data"]["train"])


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (UnknownKeyError, {"learning_rte": 1}, "unknown key `learning_rte`; did you mean `learning_rate`?"),
        (UnsupportedKeyError, {"use_badam": True}, "`use_badam: true` is not supported"),
        (UnsupportedKeyError, {"label_smoothing_factor": 0.1}, "plain cross entropy"),
        (UnsupportedKeyError, {"finetuning_type": "oft"}, "use lora, full or freeze"),
        (UnsupportedKeyError, {"quantization_bit": 8}, "only 4 bits"),
        (UnsupportedKeyError, {"lora_target": "proj"}, "q_proj"),
        (UnsupportedKeyError, {"additional_target": "lm_head"}, "visual.merger"),
        (UnsupportedKeyError, {"template": "llama3"}, "qwen2_vl"),
        (UnsupportedKeyError, {"save_steps": 0.1}, "a share of the steps"),
        (UnsupportedKeyError, {"push_to_hub": True}, "triptych export"),
        (OtherStageError, {"stage": "dpo"}, "`stage: dpo`"),
        (OtherStageError, {"pref_beta": 0.2}, "preference or reward"),
        (OtherStageError, {"do_train": False, "export_dir": "out"}, "triptych export DIR --to out"),
        (OtherStageError, {"do_train": False, "do_predict": True}, "triptych eval"),
        (ContradictionError, {"stage": "sfft"}, "it is one of pt, sft"),
        (ContradictionError, {"mask_history": True, "train_on_prompt": True}, "at once"),
        (ContradictionError, {"interleave_probs": "0.5,0.5"}, "an interleaving `mix_strategy`"),
        (ContradictionError, {"val_size": 0.1, "eval_dataset": "val"}, "both say what is held out"),
        (ContradictionError, {"eval_strategy": "steps"}, "needs `eval_dataset` or `val_size`"),
        (ContradictionError, {"dataset": None}, "nothing to train on"),
        (ContradictionError, {"finetuning_type": "full", "use_dora": True}, "goes with `finetuning_type: lora`"),
        (ContradictionError, {"learning_rate": "fast"}, "a number, this is 'fast'"),
        (ContradictionError, {"per_device_train_batch_size": 1.5}, "a whole number"),
    ],
)
def test_the_four_errors(kind: type[ConfigError], given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        translated(**given)
    assert type(caught.value) is kind, caught.value
    assert message in str(caught.value)


def test_a_template_of_another_family_is_a_contradiction() -> None:
    with pytest.raises(ContradictionError, match="write qwen3_vl or qwen3_vl_nothink"):
        translated({"model_type": "qwen3_vl"})


def test_what_nothing_follows_from_is_said_once_and_what_is_another_command_s() -> None:
    notes = translated(use_unsloth=True, export_dir="out", plot_loss=True, hf_hub_token="hf_secret").notes
    assert [line for line in notes.dropped if "use_unsloth" in line]
    assert [line for line in notes.must_do if "triptych export" in line]
    text = notes.text()
    assert "plot_loss" not in text
    assert "hf_secret" not in text
    assert [head for head in ("differs:", "dropped,", "you must do:") if text.count(head) != 1] == []


def test_errors_name_the_file_and_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_theirs(tmp_path, learning_rte=1, cuttoff_len=5)
    with pytest.raises(UnknownKeyError) as caught:
        open_run("their.yaml")
    lines = path.read_text().splitlines()
    places = [lines.index(next(line for line in lines if key in line)) + 1 for key in ("learning_rte", "cuttoff_len")]
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == [
        f"their.yaml:{place}" for place in places
    ]


def test_overrides_and_references_are_read_as_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RATE", "2e-4")
    write_theirs(tmp_path, learning_rate="${oc.env:RATE}", run_name="${output_dir}-a", seed="${oc.env:SEED,7}")
    opened = open_run("their.yaml", ["lora_rank=4", "data.on_error=skip", "lr_scheduler_kwargs.num_cycles=2"])
    assert opened.tool == "LLaMA-Factory"
    settings = opened.settings
    assert (settings.train.learning_rate, settings.train.seed, settings.model.lora.rank) == (2e-4, 7, 4)
    assert settings.train.hf == {"run_name": "saves/one-a", "lr_scheduler_kwargs": {"num_cycles": 2}}
    assert (settings.data.on_error, opened.overrides) == ("skip", ("data.on_error=skip",))
    monkeypatch.delenv("RATE")
    for given, message in (
        ([], "their.yaml:8: `learning_rate`: the environment variable RATE is not set"),
        (["learning_rate=${nothing}"], "names a key that is not in the file"),
        (["learning_rate=${oc.decode:x}"], "only ${oc.env:NAME}"),
        (["learning_rate=???"], "must be given"),
        (["seed=${learning_rate}", "learning_rate=${seed}"], "without an end"),
    ):
        with pytest.raises(ConfigError) as caught:
            open_run("their.yaml", given)
        assert message in str(caught.value), given


def test_the_native_file_reads_back_the_same_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_theirs(tmp_path)
    opened = open_run("their.yaml")
    before = run_file.absolute_paths(opened.settings.model_dump(mode="json"))
    native = tmp_path / "elsewhere" / "run.yaml"
    native.parent.mkdir()
    native.write_text(to_yaml(opened))
    monkeypatch.chdir(native.parent)
    loaded = run_file.load("run.yaml")
    assert run_file.absolute_paths(loaded.model_dump(mode="json")) == before
    assert loaded.output == str(tmp_path / "saves" / "one")


def test_convert_writes_the_native_file_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_theirs(tmp_path)
    code, text = said(capsys, "convert", "their.yaml", "lora_rank=4", "data.workers=1", "--to", "native/run.yaml")
    assert (code, text.count("differs:")) == (0, 1), text
    settings = run_file.load("native/run.yaml")
    assert (settings.model.lora.rank, settings.data.workers) == (4, 1)
    assert not (tmp_path / "saves").exists()
    code, text = said(capsys, "convert", "their.yaml", "--to", "native/run.yaml")
    assert (code, "there already" in text) == (1, True), text
    code, text = said(capsys, "convert", "native/run.yaml")
    assert (code, "Triptych's own already" in text) == (1, True), text
    code, text = said(capsys, "convert", "their.yaml", "--mark", "<i>")
    assert (code, "for data files" in text) == (1, True), text


def test_commands_take_their_file_and_say_what_differs_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_theirs(tmp_path)
    for command in ("check", "index", "plan"):
        code, text = said(capsys, command, "their.yaml")
        assert code == 0, text
        assert text.count("is a run file of LLaMA-Factory") == 1, command
        assert text.count("differs:") == 1, command


def test_files_of_other_tools_and_native_ones_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    for content, message in (
        ({"dataset_name": "a/b", "model_name_or_path": "m", "max_length": 3}, "a run file of TRL"),
        ({"base_model": "m", "datasets": [{"path": "a"}], "sequence_len": 4096}, "a run file of Axolotl"),
        ({"model": "m", "dataset": ["a.json"], "train_type": "lora", "torch_dtype": "bfloat16"}, "ms-swift"),
        ({"model": {"path": "m"}, "dataset": "x"}, "its name here is `data.train`"),
        ({"lr": 1}, "its name here is `train.learning_rate`"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(ConfigError) as caught:
            open_run(path)
        assert message in str(caught.value), content
