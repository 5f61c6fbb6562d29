"""Training runs from run file to checkpoint, on tiny models, through the same code as the command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import tiny
from triptych.errors import ConfigError, DataError
from triptych.forward.batch import Batch
from triptych.forward.row_forward import RowForward
from triptych.recovery import checkpoints
from triptych.recovery.start import starting
from triptych.run.prepare import prepare
from triptych.run.run_file import load
from triptych.terminal import Terminal
from triptych.training.train import train

# peft 0.21 still reads the attribute that transformers 5.23 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def run(path: Path, *overrides: str, resume: bool = False) -> list[dict[str, Any]]:
    """Train as ``path`` says; returns the log."""
    out = Terminal()
    with starting(load(path, overrides), out, resuming=resume, overrides=overrides) as (settings, prepared, start):
        train(settings, prepared, out, start=start)
    return log(Path(settings.output))


def log(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def losses(entries: list[dict[str, Any]]) -> list[float]:
    return [entry["loss"] for entry in entries if "loss" in entry]


def weights(output: Path) -> dict[str, torch.Tensor]:
    (path,) = (output / "final").glob("*model.safetensors")
    return load_file(path)


def last_image(data: Path, settings_path: Path) -> tuple[Path, str]:
    """An image of a sample in the last rows of the plan, and the sample's origin."""
    settings = load(settings_path)
    prepared = prepare(settings, ("train",), Terminal())
    from triptych.planning.plan import make_plan

    corpus = prepared.corpora["train"]
    plan = make_plan(corpus.lengths, settings.batch.spec(), epochs=1, seed=settings.train.seed)
    for index in plan.samples[::-1].tolist():
        if corpus.images(index):
            return data.parent / corpus.images(index)[0].name, str(corpus.origin(index))
    raise AssertionError("no sample has an image")


def test_four_rows_accumulated_are_one_row_of_four(small_model_dir: Path, tmp_path: Path) -> None:
    data = tiny.write_dataset(tmp_path, 8)
    path = tiny.write_run(tmp_path, small_model_dir, data)
    one = run(path, "batch.samples=4", f"output={tmp_path / 'one'}")
    four = run(path, "batch.samples=1", "train.rows_per_step=4", f"output={tmp_path / 'four'}")
    assert len(losses(one)) == 2
    assert losses(four) == pytest.approx(losses(one), rel=1e-5)
    left, right = weights(tmp_path / "one"), weights(tmp_path / "four")
    assert all(torch.allclose(left[name], right[name], atol=2e-5) for name in left)


def test_rows_that_weigh_the_same_are_averaged_and_steps_end_with_epochs(small_model_dir: Path, tmp_path: Path) -> None:
    data = tiny.write_dataset(tmp_path, 7)
    still = {"learning_rate": 1e-12, "shuffle": False, "epochs": 2}  # every row has the same loss in each epoch
    path = tiny.write_run(tmp_path, small_model_dir, data, train={**still, "log_every": 1}, batch={"samples": 2})
    alone = losses(run(path, f"output={tmp_path / 'alone'}"))
    assert len(alone) == 8
    assert alone[4:] == pytest.approx(alone[:4], rel=1e-6), "in the order of the data in both epochs"
    options = ("train.rows_per_step=3", f"output={tmp_path / 'rows'}")
    averaged = losses(run(path, "train.average=rows", *options))
    assert averaged == pytest.approx([sum(alone[:3]) / 3, alone[3]] * 2, rel=1e-6)


LORA = {"train": "lora", "freeze": ["vision", "merger"], "lora": {"rank": 4, "dropout": 0.1}}


@pytest.mark.parametrize(("workers", "model"), [(0, {}), (2, {}), (0, LORA)], ids=["full-0", "full-2", "lora-0"])
def test_stopped_and_resumed_is_never_stopped(
    small_model_dir: Path, tmp_path: Path, workers: int, model: dict[str, Any]
) -> None:
    data = tiny.write_dataset(tmp_path, 16)
    settings_of_run = {"data": {"workers": workers}, "train": {"save_every": 3}, "model": model}
    path = tiny.write_run(tmp_path, small_model_dir, data, **settings_of_run)
    options = ("batch.samples=2",)
    whole = run(path, *options, f"output={tmp_path / 'whole'}")

    image, origin = last_image(data, path)
    settings = load(path, (*options, f"output={tmp_path / 'stopped'}"))
    out = Terminal()
    with starting(settings, out) as (_, prepared, start):
        shutil.move(image, tmp_path / "gone")  # after the check, before its turn
        with pytest.raises(DataError) as error:
            train(settings, prepared, out, start=start)
    assert origin in str(error.value)
    assert str(image) in str(error.value)
    checkpoint, _ = checkpoints.last_good(tmp_path / "stopped")
    assert checkpoint is not None
    assert not (tmp_path / "stopped" / "final").exists()
    assert (checkpoint / "optimizer.pt").exists()

    shutil.move(tmp_path / "gone", image)
    resumed = run(path, *options, f"output={tmp_path / 'stopped'}", resume=True)
    assert losses(resumed) == losses(whole), "float equality, step by step"
    left, right = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("model", [{"freeze": ["vision"]}, {**LORA, "freeze": ["vision"], "full": ["merger"]}])
def test_a_run_in_bfloat16_resumes_with_the_weights_it_kept_in_float32(
    small_model_dir: Path, tmp_path: Path, model: dict[str, Any]
) -> None:
    data = tiny.write_dataset(tmp_path, 12)
    settings = {"model": {**model, "precision": "bfloat16"}, "train": {"save_every": 2}}
    path = tiny.write_run(tmp_path, small_model_dir, data, **settings)
    options = ("batch.samples=2", "train.keep_checkpoints=null")
    whole = run(path, *options, f"output={tmp_path / 'whole'}")
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "stopped" / "checkpoint-2")
    resumed = run(path, *options, f"output={tmp_path / 'stopped'}", resume=True)
    assert losses(resumed) == losses(whole), "float equality, step by step"
    left, right = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_resuming_over_changed_rows_is_refused(small_model_dir: Path, tmp_path: Path) -> None:
    data = tiny.write_dataset(tmp_path, 4)
    path = tiny.write_run(tmp_path, small_model_dir, data, batch={"samples": 2})
    run(path)
    shutil.rmtree(tmp_path / "run" / "final")  # as if killed before it was written
    with pytest.raises(ConfigError, match=r"train\.seed: 42 -> 7"):
        run(path, "train.seed=7", resume=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_lost_during_training_is_skipped_and_reported(
    small_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    data = tiny.write_dataset(tmp_path, 8)
    options = {"on_error": "skip", "workers": workers}
    path = tiny.write_run(tmp_path, small_model_dir, data, data=options, batch={"samples": 2})
    image, origin = last_image(data, path)
    settings = load(path)
    prepared = prepare(settings, ("train",), Terminal())
    image.unlink()
    train(settings, prepared, Terminal())
    output = Path(settings.output)
    assert len(losses(log(output))) == 4, "all steps were taken"
    (rejected,) = [json.loads(line) for line in (output / "rejected.jsonl").read_text().splitlines()]
    assert (rejected["origin"], rejected["code"]) == (origin, "image-missing")
    assert json.loads((output / "summary.json").read_text())["lost_samples"] == 1
    assert log(output)[-1]["lost_samples"] == 1
    assert f"lost during training: {origin}" in capsys.readouterr().err


def test_a_row_whose_only_sample_is_lost_does_not_stop_training(small_model_dir: Path, tmp_path: Path) -> None:
    data = tiny.write_dataset(tmp_path, 4, seed=1)
    path = tiny.write_run(tmp_path, small_model_dir, data, data={"on_error": "skip"}, batch={"samples": 1})
    settings = load(path)
    prepared = prepare(settings, ("train",), Terminal())
    image, _ = last_image(data, path)
    image.unlink()
    train(settings, prepared, Terminal())
    found = losses(log(Path(settings.output)))
    assert len(found) == 4
    assert found.count(0.0) == 1


def test_skipping_trains_on_exactly_the_good_records(small_model_dir: Path, tmp_path: Path) -> None:
    data = tiny.write_dataset(tmp_path, 9)
    records = json.loads(data.read_text())
    records[2]["images"].append("missing.jpg")
    records[5]["conversations"] = []
    data.write_text(json.dumps(records))
    path = tiny.write_run(tmp_path, small_model_dir, data, data={"on_error": "skip"})
    settings = load(path)
    prepared = prepare(settings, ("train",), Terminal())
    corpus = prepared.corpora["train"]
    assert [corpus.origin(index).line for index in range(len(corpus))] == [1, 2, 4, 5, 7, 8, 9]
    rejected = [json.loads(line) for line in (Path(settings.output) / "rejected.jsonl").read_text().splitlines()]
    assert {item["line"] for item in rejected} == {3, 6}
    with pytest.raises(DataError):
        prepare(load(path, ["data.on_error=stop"]), ("train",), Terminal())


def test_twelve_large_images_shrink_into_the_budget_and_train(model_dir: Path, tmp_path: Path) -> None:
    images = [str(tiny.write_image(tmp_path / f"{n}.jpg", 900 + 40 * n, 1200, seed=n)) for n in range(12)]
    data = tmp_path / "twelve.json"
    data.write_text(json.dumps([tiny.record(images, "<image>" * 12 + "Which differs?", "The third.")]))
    path = tiny.write_run(tmp_path, model_dir, data, data={"max_tokens": 2048})
    settings = load(path)
    corpus = prepare(settings, ("train",), Terminal()).corpora["train"]
    assert len(corpus.images(0)) == 12
    assert 1900 < corpus.lengths.tokens[0] <= 2048
    assert len(losses(run(path))) == 1


def test_frozen_parts_stay_and_the_others_learn(small_model_dir: Path, tmp_path: Path) -> None:
    data = tiny.write_dataset(tmp_path, 4)
    path = tiny.write_run(tmp_path, small_model_dir, data, model={"freeze": ["vision"]}, train={"warmup": 0})
    run(path)
    before, after = load_file(small_model_dir / "model.safetensors"), weights(tmp_path / "run")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not [name for name in changed if "visual" in name and "merger" not in name]
    assert [name for name in changed if "merger" in name]
    assert [name for name in changed if "visual" not in name]


def test_lora_saves_an_adapter_that_peft_loads_and_answers_with(small_model_dir: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    from triptych.model.trained import load_trained

    data = tiny.write_dataset(tmp_path, 4)
    path = tiny.write_run(tmp_path, small_model_dir, data, model=LORA, batch={"samples": 1})
    run(path)
    final = tmp_path / "run" / "final"
    adapter = load_file(final / "adapter_model.safetensors")
    assert adapter
    assert all("language_model" in name for name in adapter), "frozen parts take no adapter"
    base = AutoModelForImageTextToText.from_pretrained(small_model_dir)
    adapted = PeftModel.from_pretrained(base, final)
    ids = torch.arange(10)[None]
    merged = load_trained(load(path).model, final, torch.float32)
    torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-4)
    fresh = AutoModelForImageTextToText.from_pretrained(small_model_dir)
    assert not torch.allclose(merged(ids).logits, fresh(ids).logits, atol=1e-4), "the adapter learned"


def test_parts_learn_at_their_own_rates(small_model_dir: Path, tmp_path: Path) -> None:
    data = tiny.write_dataset(tmp_path, 4)
    rates = {"part_learning_rates": {"vision": 1e-9, "merger": 1e-9}, "warmup": 0, "schedule": "constant"}
    run(tiny.write_run(tmp_path, small_model_dir, data, train=rates))
    before, after = load_file(small_model_dir / "model.safetensors"), weights(tmp_path / "run")
    moved = {name: float((after[name] - before[name]).abs().max()) for name in before}
    assert max(step for name, step in moved.items() if "visual" in name) < 1e-7
    assert min(step for name, step in moved.items() if "visual" not in name and "proj" in name) > 1e-4


def test_recomputing_activations_changes_no_loss(small_model_dir: Path, tmp_path: Path) -> None:
    data = tiny.write_dataset(tmp_path, 8)
    path = tiny.write_run(tmp_path, small_model_dir, data)
    plain = run(path, f"output={tmp_path / 'plain'}")
    saving = run(path, "train.gradient_checkpointing=true", f"output={tmp_path / 'saving'}")
    assert losses(saving) == pytest.approx(losses(plain), rel=1e-6)


def test_a_checkpoint_serves_with_the_pixels_it_trained_on(small_model_dir: Path, tmp_path: Path) -> None:
    data = tiny.write_dataset(tmp_path, 4)
    path = tiny.write_run(tmp_path, small_model_dir, data, data={"min_pixels": 3200, "max_pixels": 6400})
    run(path)
    final = tmp_path / "run" / "final"
    processor = Qwen2VLImageProcessorPil.from_pretrained(final)
    assert (processor.size["shortest_edge"], processor.size["longest_edge"]) == (3200, 6400)
    assert load(final / "run.yaml").data.max_pixels == 6400
    AutoModelForImageTextToText.from_pretrained(final)


def test_packed_rows_keep_both_budgets_and_lose_no_sample(
    small_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny.write_dataset(tmp_path, 24)
    path = tiny.write_run(tmp_path, small_model_dir, data, train={"epochs": 2, "rows_per_step": 2})
    content = json.loads(path.read_text())
    content["batch"] = {"tokens": 256, "patches": 256}
    path.write_text(json.dumps(content))
    seen: list[Batch] = []
    real = RowForward.losses

    def watched(self: RowForward, model: torch.nn.Module, row: Batch) -> Any:
        seen.append(row)
        return real(self, model, row)

    monkeypatch.setattr(RowForward, "losses", watched)
    entries = run(path)
    assert all(row.input_ids.shape[1] <= 256 for row in seen)
    assert all(len(row.pixels) == row.image_grid_thw.prod(-1).sum() <= 256 for row in seen)
    assert max(len(row.samples) for row in seen) > 1, "something was packed"
    # Each of the 24 samples once per epoch, of 2.
    assert sorted(index for row in seen for index in row.samples) == sorted([*range(24)] * 2)
    assert all(0.4 < entry["row_fill"] <= 1 for entry in entries if "loss" in entry)
    assert entries[-1]["epoch"] == pytest.approx(2.0)
    last = max(entry["step"] for entry in entries)
    assert (tmp_path / "run" / f"checkpoint-{last}").is_dir()


def test_the_evaluation_loss_is_the_mean_over_supervised_tokens(small_model_dir: Path, tmp_path: Path) -> None:
    data = tiny.write_dataset(tmp_path, 4)
    held_out = tiny.write_dataset(tmp_path, 5, seed=9, name="held.json")
    settings = {"eval": [{"path": str(held_out)}]}
    path = tiny.write_run(tmp_path, small_model_dir, data, data=settings)
    fine = run(path, "batch.samples=1", f"output={tmp_path / 'fine'}", "train.learning_rate=1e-12")
    coarse = run(path, "batch.samples=4", f"output={tmp_path / 'coarse'}", "train.learning_rate=1e-12")
    found = [entry["eval_loss"] for entry in (*fine, *coarse) if "eval_loss" in entry]
    assert len(found) == 2
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_settings_of_ours_are_not_taken_through_transformers_arguments(small_model_dir: Path, tmp_path: Path) -> None:
    data = tiny.write_dataset(tmp_path, 2)
    path = tiny.write_run(tmp_path, small_model_dir, data)
    with pytest.raises(ConfigError, match=r"train\.learning_rate"):
        run(path, "train.hf.learning_rate=1")
    with pytest.raises(ConfigError, match="no_such_argument"):
        run(path, "train.hf.no_such_argument=1")


def row_workers() -> list[int]:
    """Processes of this one that build rows."""
    (own,) = Path("/proc/self/task").glob(f"{os.getpid()}")
    children = [int(pid) for task in own.parent.iterdir() for pid in (task / "children").read_text().split()]
    return [pid for pid in children if b"triptych.rows.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_a_run_whose_workers_are_stopped_goes_on_as_if_nothing_had_happened(
    small_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny.write_dataset(tmp_path, 24)
    overrides = ["data.workers=2", "data.stall_seconds=3", "batch.samples=2", "data.prefetch_mb=1"]
    path = tiny.write_run(tmp_path, small_model_dir, data)
    plain = losses(run(path, f"output={tmp_path / 'plain'}", *overrides))
    stopped: list[int] = []
    forward = RowForward.losses

    def stop_once(self: RowForward, *args: Any) -> Any:
        if not stopped:
            stopped.extend(row_workers())
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
        return forward(self, *args)

    monkeypatch.setattr(RowForward, "losses", stop_once)
    monkeypatch.setattr("triptych.rows.loader.ROWS_AHEAD", 3)
    began = time.monotonic()
    found = losses(run(path, f"output={tmp_path / 'stopped'}", *overrides))
    assert time.monotonic() - began < 60
    assert len(stopped) == 2
    assert "not gone on for 3 s" in caplog.text
    assert found == plain
