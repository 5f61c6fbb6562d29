"""Every way to train: what is promised to learn changes, everything else stays to the bit, and checkpoints hold it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from triptych.errors import ConfigError
from triptych.family.family import FAMILIES, read_model_files
from triptych.forward.batch import Batch, build_batch
from triptych.forward.row_forward import RowForward
from triptych.model.loading import PixelNormalizer, empty_model, load_model
from triptych.model.parts import part_of, part_sizes
from triptych.model.trainable import set_up_training
from triptych.model.trained import load_trained
from triptych.recovery.start import starting
from triptych.run.prepare import prepare
from triptych.run.run_file import load
from triptych.run.settings import ModelSettings
from triptych.terminal import Terminal
from triptych.training.train import train

# peft 0.21 still reads the attribute that transformers 5.23 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

FAMILY = FAMILIES["qwen2_vl"]
MIXED = {"train": "lora", "freeze": ["vision"], "full": ["merger"], "lora": {"rank": 4, "dropout": 0.1}}
MERGER, HEAD = "visual.merger", "lm_head"


def run(path: Path, *overrides: str, resume: bool = False) -> list[float]:
    """Train as ``path`` says; returns the losses."""
    out = Terminal()
    with starting(load(path, overrides), out, resuming=resume, overrides=overrides) as (settings, prepared, start):
        train(settings, prepared, out, start=start)
    log = [json.loads(line) for line in (Path(settings.output) / "log.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in log if "loss" in entry]


def write(folder: Path, model: Path, how: dict[str, Any], **train_settings: Any) -> Path:
    data = tiny.write_dataset(folder, 6)
    settings = {"warmup": 0, "schedule": "constant", "learning_rate": 3e-3, **train_settings}
    return tiny.write_run(folder, model, data, model=how, batch={"samples": 2}, train=settings)


def changed(path: Path) -> set[str]:
    """Names of the weights that differ between the base model and what a run made of it."""
    settings = load(path)
    before = load_model(settings.model).state_dict()
    after = load_trained(settings.model, Path(settings.output) / "final", torch.float32).state_dict()
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def row(path: Path) -> tuple[Batch, RowForward]:
    settings = load(path)
    prepared = prepare(settings, ("train",), Terminal())
    corpus = prepared.corpora["train"]
    most = int(np.argmax(corpus.lengths.patches))
    batch = build_batch(corpus, [most, 0, 1], filler=prepared.encoder.template.filler())
    return batch, RowForward(PixelNormalizer(prepared.files))


def layer(name: str) -> int:
    """Number of the layer or block in a name; -1 if there is none."""
    _, _, rest = name.partition(".layers." if ".layers." in name else ".blocks.")
    return int(rest.partition(".")[0]) if rest else -1


def linear(name: str) -> bool:
    return name.endswith("proj.weight") and "patch_embed" not in name


def in_language(name: str) -> bool:
    return "visual" not in name


Promise = Callable[[str], bool]
METHODS: dict[str, tuple[dict[str, Any], Promise]] = {
    "full": ({}, lambda name: bool(name)),
    "full, first layers frozen": (
        {"freeze": ["vision", "language[:2]"]},
        # The head shares the embedding's weights, and those are frozen.
        lambda name: MERGER in name or (in_language(name) and (layer(name) == 2 or "language_model.norm" in name)),
    ),
    "full, last layers frozen": (
        {"freeze": ["merger", "vision[-1:]", "language[1:]"]},
        lambda name: (
            (in_language(name) and (layer(name) == 0 or "embed_tokens" in name or HEAD in name))
            or ("visual" in name and MERGER not in name and layer(name) < 1)
        ),
    ),
    "full, layers between": (
        {"freeze": ["vision", "merger", "language[:1]", "language[2:]"]},
        lambda name: in_language(name) and layer(name) == 1,
    ),
    "lora": ({"train": "lora", "freeze": ["vision", "merger"]}, lambda name: in_language(name) and linear(name)),
    "lora, one layer": (
        {"train": "lora", "lora": {"targets": {"language[-1:]": ["q_proj", "v_proj"]}}},
        lambda name: layer(name) == 2 and name.endswith(("q_proj.weight", "v_proj.weight")),
    ),
    "dora": (
        {"train": "lora", "freeze": ["vision", "merger"], "lora": {"dora": True}},
        lambda name: in_language(name) and linear(name),
    ),
    "rslora": (
        {"train": "lora", "freeze": ["vision", "merger"], "lora": {"rslora": True}},
        lambda name: in_language(name) and linear(name),
    ),
    "mixed": (MIXED, lambda name: MERGER in name or (in_language(name) and linear(name))),
    "mixed, embedding in full": (
        {"train": "lora", "freeze": ["vision", "merger"], "full": ["language[:1]"]},
        lambda name: in_language(name) and (layer(name) == 0 or "embed_tokens" in name or HEAD in name or linear(name)),
    ),
    "mixed, tower in full": (
        {"train": "lora", "full": ["vision", "merger"], "lora": {"targets": ["q_proj"]}},
        lambda name: "visual" in name or name.endswith("q_proj.weight"),
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_exactly_what_is_promised_learns(small_model_dir: Path, tmp_path: Path, method: str) -> None:
    how, promised = METHODS[method]
    path = write(tmp_path, small_model_dir, how)
    run(path)
    names = load_model(load(path).model).state_dict()
    found = changed(path)
    # Biases of keys get no gradient but rounding: softmax does not see them.
    unsure = {name for name in names if name.endswith(("k_proj.bias", "qkv.bias"))}
    assert found - unsure == {name for name in names if promised(name)} - unsure
    assert found <= {name for name in names if promised(name)}


@pytest.mark.parametrize(
    "method", ["lora", "dora", "rslora", "mixed", "mixed, embedding in full", "mixed, tower in full"]
)
def test_merged_answers_as_adapted_does(small_model_dir: Path, tmp_path: Path, method: str) -> None:
    from peft import PeftModel

    how, _ = METHODS[method]
    path = write(tmp_path, small_model_dir, how)
    run(path)
    settings, final = load(path), tmp_path / "run" / "final"
    batch, forward = row(path)
    adapted = PeftModel.from_pretrained(load_model(settings.model), final)
    merged = load_trained(settings.model, final, torch.float32)
    with torch.no_grad():
        wanted, found, base = (forward.logits(m.eval(), batch) for m in (adapted, merged, load_model(settings.model)))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(base, wanted, atol=1e-2), "it learned"
    merged.save_pretrained(tmp_path / "whole")
    whole = load_model(settings.model.model_copy(update={"path": str(tmp_path / "whole")}))
    with torch.no_grad():
        assert torch.equal(forward.logits(whole.eval(), batch), found), "also after it was saved as a plain model"


def test_a_tied_head_goes_on_sharing_the_trained_embedding(small_model_dir: Path) -> None:
    how = ModelSettings.model_validate({"path": str(small_model_dir), "train": "lora", "full": ["language[:0]"]})
    model = set_up_training(load_model(how), FAMILY, how, torch.float32)
    ids = torch.arange(12)[None]
    model(ids).logits.sum().backward()
    (embedding,) = [p for name, p in model.named_parameters() if "embed_tokens" in name and p.requires_grad]
    assert embedding.grad is not None
    used = embedding.grad.abs().sum(1) > 0
    assert used.all(), "every row gets a gradient: as the head's, not only of the ids that were read"


def test_a_mixed_run_resumed_is_never_stopped(small_model_dir: Path, tmp_path: Path) -> None:
    data = tiny.write_dataset(tmp_path, 12)
    path = tiny.write_run(
        tmp_path,
        small_model_dir,
        data,
        model={**MIXED, "freeze": ["vision", "language[:1]"]},
        batch={"samples": 2},
        train={"save_every": 3, "part_learning_rates": {"merger": 1e-4, "language[2:]": 2e-3}},
    )
    whole = run(path, f"output={tmp_path / 'whole'}")
    assert len(whole) == 6
    (tmp_path / "stopped").mkdir()
    (tmp_path / "whole" / "checkpoint-3").rename(tmp_path / "stopped" / "checkpoint-3")
    assert run(path, f"output={tmp_path / 'stopped'}", resume=True) == whole, "float equality, step by step"
    left, right = (
        load_trained(load(path).model, tmp_path / name / "final", torch.float32).state_dict()
        for name in ("whole", "stopped")
    )
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_layers_learn_at_their_own_rates_and_the_narrower_decides(small_model_dir: Path, tmp_path: Path) -> None:
    rates = {"language": 1e-9, "language[1:2]": 4e-3, "vision": 1e-9, "vision[:1]": 2e-3}
    path = write(tmp_path, small_model_dir, {}, part_learning_rates=rates)
    run(path)
    settings = load(path)
    before = load_model(settings.model).state_dict()
    after = load_trained(settings.model, tmp_path / "run" / "final", torch.float32).state_dict()
    moved = {name: float((after[name] - before[name]).abs().max()) for name in before if name.endswith("weight")}
    for name, step in moved.items():
        fast = MERGER in name or (layer(name) == 1 if in_language(name) else layer(name) < 1)
        assert (step > 1e-3) if fast else (step < 1e-7), name
    entries = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {entry["learning_rate"] for entry in entries if "learning_rate" in entry} == {3e-3}, "the run's own"


def test_recomputing_activations_changes_no_loss_of_a_mixed_run(small_model_dir: Path, tmp_path: Path) -> None:
    path = write(tmp_path, small_model_dir, {**MIXED, "full": ["merger", "language[:1]"]})
    plain = run(path, f"output={tmp_path / 'plain'}")
    saving = run(path, "train.gradient_checkpointing=true", f"output={tmp_path / 'saving'}")
    assert saving == pytest.approx(plain, rel=1e-6)


def test_what_is_frozen_is_stored_narrow_and_what_learns_wide(small_model_dir: Path) -> None:
    how = ModelSettings.model_validate({"path": str(small_model_dir), **MIXED})
    model = set_up_training(load_model(how), FAMILY, how, torch.bfloat16)
    for name, parameter in model.named_parameters():
        assert parameter.dtype is (torch.float32 if parameter.requires_grad else torch.bfloat16), name


@pytest.mark.parametrize("how", [MIXED, {"freeze": ["language[:1]"]}], ids=["mixed", "full"])
def test_the_start_shows_what_learns(
    small_model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    how: dict[str, Any],
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path = write(tmp_path, small_model_dir, how, part_learning_rates={"merger": 1e-4})
    run(path)
    shown = {}
    for line in capsys.readouterr().err.splitlines():
        cells = [cell.strip() for cell in line.strip("│ ").split("│")]
        if len(cells) == 6 and cells[1].replace(",", "").isdigit():
            shown[cells[0]] = cells[1:]
    settings = load(path)
    model = set_up_training(load_model(settings.model), FAMILY, settings.model, torch.float32)
    base = load_model(settings.model)
    for part in ("vision", "merger", "language"):
        total = sum(p.numel() for name, p in base.named_parameters() if part_of(name, FAMILY) == part)
        learns = sum(p.numel() for n, p in model.named_parameters() if part_of(n, FAMILY) == part and p.requires_grad)
        full, adapters, frozen = (int(cell.replace(",", "")) for cell in shown[part][1:4])
        assert shown[part][0] == f"{total:,}"
        assert (full + adapters, full + frozen) == (learns, total)
    assert shown["merger"][4] == "0.0001"
    assert shown["language"][4] == "0.003"


def test_a_plan_without_weights_counts_what_training_has(small_model_dir: Path) -> None:
    how = ModelSettings.model_validate({"path": str(small_model_dir), **MIXED, "full": ["merger", "language[:1]"]})
    real = set_up_training(load_model(how), FAMILY, how, torch.bfloat16)
    with torch.device("meta"):
        empty = set_up_training(empty_model(how), FAMILY, how, torch.bfloat16)
    rates = {name: 1.0 for name, _ in real.named_parameters()}
    assert part_sizes(empty, FAMILY, rates) == part_sizes(real, FAMILY, rates)


def refused(model_dir: Path, how: dict[str, Any], tmp_path: Path, **train_settings: Any) -> str:
    """Why a run is refused; the weights are not there to be read."""
    without = tmp_path / "without-weights"
    without.mkdir()
    for file in model_dir.iterdir():
        if file.suffix != ".safetensors":
            (without / file.name).write_bytes(file.read_bytes())
    path = write(tmp_path, without, how, **train_settings)
    with pytest.raises(ConfigError) as error:
        prepare(load(path), ("train",), Terminal())
    return str(error.value)


LORA = {"train": "lora"}
REFUSED: dict[str, tuple[dict[str, Any], dict[str, float], str]] = {
    "all frozen": ({"freeze": ["vision", "merger", "language"]}, {}, "nothing would learn"),
    "all frozen in slices": (
        {"freeze": ["vision", "merger", "language[:2]", "language[2:]"]},
        {},
        "nothing would learn",
    ),
    "frozen and full": (
        {**LORA, "freeze": ["vision"], "full": ["vision"]},
        {},
        "vision of `full` and vision of `freeze`",
    ),
    "frozen and full, slices": (
        {**LORA, "freeze": ["language[:2]"], "full": ["language[1:]"]},
        {},
        "language[1:] of `full` and language[:2] of `freeze`",
    ),
    "full beside full": ({"full": ["merger"]}, {}, "`full` goes with `lora`"),
    "no room for adapters": ({**LORA, "freeze": ["vision"], "full": ["merger", "language"]}, {}, "no layer is left"),
    "no room, slices": (
        {**LORA, "freeze": ["vision", "language[:1]"], "full": ["merger", "language[1:]"]},
        {},
        "no layer is left",
    ),
    "4-bit and full": ({"train": "qlora", "full": ["language[:1]"]}, {}, "cannot learn"),
    "dora of weights": ({"lora": {"dora": True}}, {}, "`lora.dora` belongs to adapters"),
    "rslora of weights": ({"lora": {"rslora": True}}, {}, "`lora.rslora` belongs to adapters"),
    "experts of weights": ({"lora": {"experts": True}}, {}, "`lora.experts` belongs to adapters"),
    "experts and dropout": ({**LORA, "lora": {"experts": True, "dropout": 0.1}}, {}, "neither `dora` nor `dropout`"),
    "experts of a dense model": ({**LORA, "lora": {"experts": True}}, {}, "has no experts"),
    "no target": ({**LORA, "lora": {"targets": []}}, {}, "names no layer"),
    "target in a frozen part": (
        {**LORA, "freeze": ["vision"], "lora": {"targets": {"vision": "all-linear", "language": "all-linear"}}},
        {},
        "vision is frozen or trained in full",
    ),
    "no such layer": (
        {"freeze": ["language[:9]"]},
        {},
        "model.freeze: language[:9]: no such layer; language has 3 layers",
    ),
    "no such layer from the end": ({"freeze": ["vision[-3:]"]}, {}, "vision has 2 layers, 0 to 1"),
    "no layer at all": ({"freeze": ["language[2:1]"]}, {}, "language[2:1] holds no layer"),
    "no part": ({"freeze": ["tower"]}, {}, "'tower' is no part of a model"),
    "no slice": ({"freeze": ["language[3]"]}, {}, "a slice of layers such as 'language[:20]'"),
    "sliced merger": ({"freeze": ["merger[:1]"]}, {}, "the merger has no layers to slice"),
    "rate of a frozen part": ({"freeze": ["vision"]}, {"vision": 1e-6}, "nothing learns in vision"),
    "rate of frozen layers": ({"freeze": ["language[:2]"]}, {"language[:1]": 1e-6}, "nothing learns in language[:1]"),
    "rate where no adapter is": (
        {**LORA, "lora": {"targets": {"language": "all-linear"}}},
        {"vision": 1e-6},
        "nothing learns in vision",
    ),
    "crossing rates": ({}, {"language[:2]": 1e-6, "language[1:]": 1e-5}, "overlap and neither is inside the other"),
    "rates of the same layers": ({}, {"language[1:]": 1e-6, "language[-2:]": 1e-5}, "overlap and neither"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_before_any_weight_is_read(small_model_dir: Path, tmp_path: Path, case: str) -> None:
    how, rates, reason = REFUSED[case]
    assert reason in refused(small_model_dir, how, tmp_path, part_learning_rates=rates)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (
            {"targets": ["q_porj"]},
            r"'q_porj' matches no linear layer .* \(did you mean q_proj\?\); there are: .*down_proj.*qkv",
        ),
        (
            {"targets": {"language": ["q_proj"], "merger": ["q_proj", "fc9"]}},
            r"'fc9' matches no linear layer of merger; there are: mlp.0, mlp.2\n'q_proj' matches no linear .* merger",
        ),
        ({"targets": ["lm_head"]}, "shares its weights with the embedding"),
    ],
)
def test_adapters_that_fit_nowhere_are_refused(small_model_dir: Path, how: dict[str, Any], reason: str) -> None:
    settings = ModelSettings.model_validate({"path": str(small_model_dir), "train": "lora", "lora": how})
    with pytest.raises(ConfigError, match=reason):
        set_up_training(load_model(settings), FAMILY, settings, torch.float32)


def test_a_rate_for_what_holds_nothing_is_refused(small_model_dir: Path, tmp_path: Path) -> None:
    path = write(tmp_path, small_model_dir, {"train": "lora"}, part_learning_rates={"language[:0]": 1e-3})
    with pytest.raises(ConfigError, match=r"nothing that learns is at language\[:0\]"):
        run(path)


@pytest.mark.parametrize("family", ["qwen3_vl_moe", "qwen3_5_moe"])
def test_experts_and_a_named_router_take_adapters_that_save_load_and_merge(tmp_path: Path, family: str) -> None:
    from peft import PeftModel

    base = tiny.write_model(tmp_path / "base", family=family, max_pixels=84 * 84)
    targets = {"language": ["q_proj", "mlp.gate"]}
    path = write(tmp_path, base, {"train": "lora", "lora": {"rank": 2, "experts": True, "targets": targets}})
    run(path)
    found = changed(path)
    names = load_model(load(path).model).state_dict()
    ends = ("q_proj.weight", "mlp.gate.weight", "experts.gate_up_proj", "experts.down_proj")
    assert found == {name for name in names if in_language(name) and name.endswith(ends)}
    final = tmp_path / "run" / "final"
    adapted = PeftModel.from_pretrained(load_model(load(path).model), final)
    merged = load_trained(load(path).model, final, torch.float32)
    ids = torch.arange(10)[None]
    torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["qwen3_vl_moe", "qwen3_5_moe"])
def test_routers_and_experts_take_no_adapters_unless_asked(tmp_path: Path, family: str) -> None:
    base = tiny.write_model(tmp_path / "base", family=family)
    settings = ModelSettings.model_validate({"path": str(base), "train": "lora"})
    model = set_up_training(load_model(settings), FAMILIES[family], settings, torch.float32)
    adapted = {name.partition(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert adapted
    assert not [name for name in adapted if name.endswith(("gate", ".experts", "lm_head"))]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_a_merger_in_full_beside_adapters(tmp_path: Path, family: str) -> None:
    base = tiny.write_model(tmp_path / "base", family=family, max_pixels=84 * 84)
    path = write(tmp_path, base, {**MIXED, "full": ["merger", "language[:1]"], "lora": {"rank": 2}})
    run(path)
    modules = read_model_files(str(base)).family.merger
    names = load_model(load(path).model).state_dict()
    found = changed(path)
    assert {name for name in names if name.startswith(modules) and name.endswith("weight")} <= found
    assert not [name for name in found if "visual" in name and not name.startswith(modules)]


def test_four_bits_without_a_gpu_are_refused_with_the_alternative(
    small_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, small_model_dir, {"train": "qlora", "freeze": ["vision", "merger"]})
    monkeypatch.setattr("triptych.run.hf_names._installed", lambda _: False)
    with pytest.raises(ConfigError, match=r"needs bitsandbytes.*triptych\[gpu\].*train: lora"):
        run(path)
    monkeypatch.setattr("triptych.run.hf_names._installed", lambda _: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"needs a CUDA GPU.*train: lora"):
        run(path)


@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None, reason="needs CUDA, bitsandbytes"
)
def test_adapters_learn_beside_four_bit_weights_and_resume(small_model_dir: Path, tmp_path: Path) -> None:
    how = {"train": "qlora", "freeze": ["vision"], "full": ["merger"], "lora": {"rank": 4}}
    path = write(tmp_path, small_model_dir, how, save_every=2)
    whole = run(path, f"output={tmp_path / 'whole'}")
    assert whole[-1] < whole[0]
    (tmp_path / "stopped").mkdir()
    (tmp_path / "whole" / "checkpoint-2").rename(tmp_path / "stopped" / "checkpoint-2")
    assert run(path, f"output={tmp_path / 'stopped'}", resume=True) == pytest.approx(whole, rel=1e-3)
