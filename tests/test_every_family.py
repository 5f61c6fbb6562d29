"""Each family goes through the commands: planned, trained, evaluated; transformers alone loads its checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import tiny
from families import FAMILIES
from triptych.commands.plan import PlanOptions, plan
from triptych.errors import ModelError
from triptych.family.family import read_model_files
from triptych.forward.attention import install_attention
from triptych.forward.batch import build_batch
from triptych.forward.flops import FlopCounter
from triptych.forward.isolation import PACKED, choose_isolation
from triptych.forward.memory import LINEAR_CHUNK, MemoryModel, RowSize, StepOptions
from triptych.forward.row_forward import RowForward
from triptych.inference.answering import predict
from triptych.model.loading import PixelNormalizer, load_model
from triptych.model.trainable import set_up_training
from triptych.run.prepare import prepare
from triptych.run.run_file import load
from triptych.terminal import Terminal
from triptych.training.train import train

# peft 0.21 still reads the attribute that transformers 5.23 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp(request.param), family=request.param, max_pixels=96 * 96)


def run(path: Path, *overrides: str) -> list[float]:
    settings = load(path, overrides)
    train(settings, prepare(settings, ("train", "eval"), Terminal()), Terminal())
    entries = [json.loads(line) for line in (Path(settings.output) / "log.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


def write_run(folder: Path, model: Path, /, **settings: Any) -> Path:
    data = tiny.write_dataset(folder, 8, seed=2)
    return tiny.write_run(folder, model, data, data={"eval": [{"path": str(data)}]}, **settings)


def test_a_full_run_learns_and_its_checkpoint_loads_with_transformers_alone(model: Path, tmp_path: Path) -> None:
    train_settings = {"epochs": 4, "warmup": 0, "schedule": "constant", "learning_rate": 3e-3}
    losses = run(write_run(tmp_path, model, train=train_settings))
    assert all(map(math.isfinite, losses))
    assert losses[-1] < 0.9 * losses[0]
    final = tmp_path / "run" / "final"
    before, after = (load_file(folder / "model.safetensors") for folder in (model, final))
    assert before.keys() == after.keys()
    assert {name: value.shape for name, value in before.items()} == {name: value.shape for name, value in after.items()}
    loaded, info = AutoModelForImageTextToText.from_pretrained(final, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.num_parameters() > 0
    Qwen2VLImageProcessorPil.from_pretrained(final)
    released, saved = (AutoTokenizer.from_pretrained(folder).chat_template for folder in (model, final))
    assert released == saved


def test_one_row_of_four_equals_four_accumulated_rows_of_one(model: Path, tmp_path: Path) -> None:
    path = write_run(tmp_path, model)
    one = run(path, "batch.samples=4", f"output={tmp_path / 'one'}")
    four = run(path, "batch.samples=1", "train.rows_per_step=4", f"output={tmp_path / 'four'}")
    assert four == pytest.approx(one, rel=1e-5)


def test_lora_on_the_language_part_changes_nothing_else(model: Path, tmp_path: Path) -> None:
    lora = {"train": "lora", "freeze": ["vision", "merger"], "lora": {"rank": 2}}
    run(write_run(tmp_path, model, model=lora))
    adapter = load_file(tmp_path / "run" / "final" / "adapter_model.safetensors")
    assert adapter
    assert all("language_model" in name for name in adapter)


def test_a_batch_of_prompts_is_answered_as_each_alone(model: Path, tmp_path: Path) -> None:
    path = write_run(tmp_path, model, eval={"max_new_tokens": 6})
    loaded = AutoModelForImageTextToText.from_pretrained(model).eval()
    answers = []
    for size in (1, 4):
        settings = load(path, [f"eval.batch_size={size}"])
        answers.append(predict(settings, prepare(settings, ("eval",), Terminal()), loaded, Terminal()))
    assert answers[0] == answers[1]


def test_its_plan_and_memory_are_shown(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan(write_run(tmp_path, model), (), PlanOptions(dry_run_worst=True))
    shown = capsys.readouterr()
    assert "largest row, run on the CPU: loss" in shown.out + shown.err


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
@pytest.mark.parametrize("freeze", ["[]", "[vision, merger]"])
def test_the_memory_estimate_is_what_the_backward_pass_is_given(
    model: Path, tmp_path: Path, freeze: str, attention: str
) -> None:
    data = tiny.write_long_dataset(tmp_path, 4)
    path = tiny.write_run(tmp_path, model, data)
    settings = load(path, [f"model.freeze={freeze}", f"model.attention={attention}"])
    prepared = prepare(settings, ("train",), Terminal())
    family, corpus = prepared.files.family, prepared.corpora["train"]
    batch = build_batch(corpus, range(len(corpus)), filler=prepared.encoder.template.filler())
    loaded = load_model(settings.model)
    isolation = choose_isolation(family, torch.device("cpu"))
    chosen = install_attention(
        loaded, settings.model.attention, torch.device("cpu"), torch.float32, recurrent=isolation.recurrent
    )
    trained = set_up_training(loaded, family, settings.model, torch.float32).train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in trained.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    forward = RowForward(PixelNormalizer(prepared.files), isolation, chosen)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward.summed_loss(trained, batch)
    estimate = MemoryModel(
        trained, family, trained.config, torch.float32, StepOptions(checkpointing=False, attention=chosen.name)
    )
    together = [batch] if isolation.packs else list(batch.unpack())
    chunk = LINEAR_CHUNK if family.recurrent else 1  # linear attention fills a sample up to whole chunks
    tokens = [math.ceil(row.input_ids.shape[1] / chunk) * chunk for row in together]
    sizes = [RowSize(count, len(row.pixels), len(row.targets)) for count, row in zip(tokens, together, strict=True)]
    # Logits are there while the loss is computed, and not kept.
    ratio = sum(kept.values()) / sum(estimate.step(size).activations for size in sizes)
    # Of linear attention the largest tensors are derived; small ones make the rest.
    assert 0.8 < ratio < (1.35 if family.recurrent else 1.25)


def test_flops_are_those_that_torch_counts(model: Path, tmp_path: Path) -> None:
    settings = load(write_run(tmp_path, model))
    prepared = prepare(settings, ("train",), Terminal())
    corpus, family = prepared.corpora["train"], prepared.files.family
    most = int(corpus.image_counts.argmax())
    batch = build_batch(corpus, [most], filler=prepared.encoder.template.filler())
    loaded = load_model(settings.model)
    if hasattr(loaded.config.text_config, "num_experts"):
        loaded.set_experts_implementation("eager")  # torch does not count grouped products
    trained = set_up_training(loaded, family, settings.model, torch.float32).train()
    with FlopCounterMode(display=False) as counted:
        RowForward(PixelNormalizer(prepared.files)).summed_loss(trained, batch).backward()  # type: ignore[no-untyped-call]
    counter = FlopCounter(trained, family, trained.config)
    # torch does not count SDPA on a CPU either.
    counter.text_attention = counter.vision_attention = 0
    # The reference path of linear attention computes whole chunks of 64 tokens, which the count leaves out.
    ratio = counted.get_total_flops() / counter.row(batch)
    assert 0.98 < ratio < (1.3 if family.recurrent else 1.02), ratio


def test_a_run_whose_samples_would_see_each_other_does_not_start(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if this family's layers were taken for layers that only attend.
    monkeypatch.setattr("triptych.training.context.choose_isolation", lambda *_: PACKED)
    path = write_run(tmp_path, model)
    if read_model_files(str(model)).family.recurrent:
        with pytest.raises(ModelError, match="packed samples see each other"):
            run(path)
    else:
        assert run(path)


def test_thinking_that_the_chat_template_leaves_out_is_counted(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def turns(*answers: str) -> dict[str, Any]:
        return {"messages": [{"role": r, "content": t} for a in answers for r, t in (("user", "?"), ("assistant", a))]}

    thought = "<think>\nSo.\n</think>\n\nYes."
    data = tmp_path / "data.json"
    data.write_text(json.dumps([turns(thought), turns(thought, "No."), turns(thought, thought, thought)]))
    prepare(load(tiny.write_run(tmp_path, model, data)), ("train",), Terminal())
    shown = capsys.readouterr().err
    assert ("thinking of 3 answers left out" in shown) == (read_model_files(str(model)).style.thinking == "last")
