"""What people bring from other tools, whole: run files with the keys of LLaMA-Factory's examples, adapters, models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

import tiny
from commands import said

pytestmark = [
    pytest.mark.slow,
    # peft 0.21 still reads the attribute that transformers 5.23 renamed.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

EXAMPLE: dict[str, Any] = {
    **{"image_max_pixels": 20_000, "video_max_pixels": 16384, "trust_remote_code": True},
    **{"stage": "sft", "do_train": True, "dataset": "shown,who", "cutoff_len": 2048, "max_samples": 1000},
    **{"preprocessing_num_workers": 16, "dataloader_num_workers": 1, "overwrite_cache": True},
    **{"logging_steps": 1, "save_steps": 500, "plot_loss": True, "overwrite_output_dir": True},
    **{"save_only_model": False, "report_to": "none", "per_device_train_batch_size": 1},
    **{"gradient_accumulation_steps": 2, "learning_rate": 1e-4, "num_train_epochs": 2.0, "warmup_ratio": 0.1},
    **{"lr_scheduler_type": "cosine", "bf16": True, "ddp_timeout": 180_000_000, "resume_from_checkpoint": None},
}
"""Keys that the example files for images have in common."""
LORA = {"finetuning_type": "lora", "lora_rank": 8, "lora_target": "all"}
FULL = {
    **{"finetuning_type": "full", "freeze_vision_tower": True, "freeze_multi_modal_projector": True},
    **{"freeze_language_model": False, "deepspeed": "examples/deepspeed/ds_z3_config.json"},
}
TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}


def write_data(folder: Path) -> None:
    """Dialogues about images under named tags, and plain instructions without columns."""
    shown = []
    for number in range(4):
        images = [f"shown/{number}-{place}.jpg" for place in range(2)]
        for name in images:
            tiny.write_image(folder / name, 150, 200, seed=number)
        turns = [("user", "<image>Who are they?"), ("assistant", "A cat."), ("user", "And now?<image>")]
        turns.append(("assistant", "A dog."))
        shown.append({"messages": [{"role": role, "content": text} for role, text in turns], "images": images})
    who = [{"instruction": f"Who are you, {number}?", "input": "", "output": "A model."} for number in range(3)]
    columns = {"messages": "messages", "images": "images"}
    info = {
        "shown": {"file_name": "shown.json", "formatting": "sharegpt", "columns": columns, "tags": TAGS},
        "who": {"file_name": "who.json"},
    }
    for name, content in (("shown", shown), ("who", who), ("dataset_info", info)):
        (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("family", "given"),
    [
        ("qwen3_vl", {**LORA, "template": "qwen3_vl_nothink"}),
        ("qwen3_vl", {**FULL, "template": "qwen3_vl_nothink"}),
        ("qwen2_5_vl", {**LORA, "template": "qwen2_vl"}),
    ],
    ids=["lora", "full", "lora of 2.5"],
)
def test_run_files_with_the_keys_of_the_examples_train(
    family: str,
    given: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_model(tmp_path / "model", family=family)
    write_data(tmp_path / "data")
    content = {"model_name_or_path": "model", **EXAMPLE, **given, "output_dir": "saves/sft"}
    Path("their.yaml").write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in content.items()))
    code, text = said(capsys, "train", "their.yaml")
    assert code == 0, text
    lines = [json.loads(line) for line in Path("saves/sft/log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 8, "seven samples, two a step, two epochs; an epoch ends with a step"
    expected = "adapter_model.safetensors" if "lora_rank" in given else "model.safetensors"
    assert Path("saves/sft/final", expected).exists()


@pytest.fixture(scope="module")
def brought(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, and in the form of TRL and LLaMA-Factory an adapter on it and a whole model."""
    folder = tmp_path_factory.mktemp("brought")
    tiny.write_model(folder / "model")
    model = AutoModelForImageTextToText.from_pretrained(folder / "model", dtype=torch.float32)
    layers = r"model\.language_model\..*(q_proj|v_proj|down_proj)"
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=layers, task_type="CAUSAL_LM"))
    torch.manual_seed(1)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    adapted.save_pretrained(folder / "adapter")
    for name in ("README.md", "training_args.bin", "trainer_state.json", "trainer_log.jsonl", "all_results.json"):
        (folder / "adapter" / name).write_bytes(b"")
    merged = PeftModel.from_pretrained(
        AutoModelForImageTextToText.from_pretrained(folder / "model", dtype=torch.float32), folder / "adapter"
    ).merge_and_unload()
    merged.save_pretrained(folder / "merged")
    for path in (folder / "model").iterdir():
        if not (folder / "merged" / path.name).exists():
            (folder / "merged" / path.name).write_bytes(path.read_bytes())
    tiny.write_dataset(folder, 4, max_images=2)
    return folder


def test_an_adapter_of_another_tool_goes_on_and_is_exported_as_peft_merges_it(
    brought: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = {"train": "lora", "freeze": ["vision", "merger"], "adapter": str(brought / "adapter")}
    lora["lora"] = {"rank": 4, "alpha": 8, "targets": ["q_proj", "v_proj", "down_proj"]}  # type: ignore[assignment]
    # One step, which warms up from a rate of 0: it ends with the weights that it started from.
    path = tiny.write_run(tmp_path, brought / "model", brought / "train.json", model=lora)
    code, text = said(capsys, "train", path)
    assert code == 0, text
    code, text = said(capsys, "export", tmp_path / "run" / "final", "--to", tmp_path / "out", "--samples", "1")
    assert code == 0, text
    found, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", brought / "merged"))
    assert found.keys() == expected.keys()
    assert max(float((found[name] - expected[name]).abs().max()) for name in found) == 0


def test_a_whole_model_of_another_tool_trains(
    brought: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny.write_run(tmp_path, brought / "merged", brought / "train.json")
    code, text = said(capsys, "train", path)
    assert code == 0, text
    (brought / "merged" / "preprocessor_config.json").unlink()  # as where a tool was given the tokenizer alone
    code, text = said(capsys, "train", path, f"output={tmp_path / 'second'}")
    assert (code, "has no preprocessor_config.json" in text) == (1, True), text
