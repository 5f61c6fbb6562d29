"""Every attention that runs on a CPU gives a row the loss and gradients of its samples alone, in every family."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel

import tiny
from equivalence import varlen
from equivalence.test_loss import alone, difference, gradients, relative
from families import FAMILIES
from triptych.errors import ModelError
from triptych.forward.attention import IMPLEMENTATIONS, MASKED_SDPA, Attention
from triptych.forward.batch import Batch, build_batch
from triptych.forward.isolation import choose_isolation
from triptych.forward.row_forward import RowForward
from triptych.model.loading import PixelNormalizer
from triptych.run.prepare import Prepared, prepare
from triptych.run.run_file import load
from triptych.terminal import Terminal

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TOLERANCE = 1e-5
"""Of a loss: relative, float32."""
GRADIENT_TOLERANCE = 5e-5
"""Of a gradient, the same: another order of summing moves the patch embedding of Qwen3.5-MoE by 2e-5, eager too."""
SAMPLES = [0, 1, 2, 3, 4, 5]
SAMPLE_SDPA = Attention("sample_sdpa", *IMPLEMENTATIONS["sample_sdpa"])
EAGER = Attention("eager", *IMPLEMENTATIONS["eager"])
HERE = {"sample_sdpa": SAMPLE_SDPA, "eager": EAGER, "varlen": varlen.reference()}


@pytest.fixture(scope="module", params=FAMILIES)
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("attention")
    model = tiny.write_model(folder / "model", family=request.param, max_pixels=96 * 96)
    data = tiny.write_dataset(folder, len(SAMPLES), seed=3)
    return prepare(load(tiny.write_run(folder, model, data)), ("train",), Terminal())


@pytest.fixture(scope="module")
def expected(prepared: Prepared) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients of the samples run alone as transformers runs them."""
    model = AutoModelForImageTextToText.from_pretrained(prepared.files.folder)
    loss = torch.stack([alone(model, prepared, index) for index in SAMPLES]).sum()
    return loss.detach(), gradients(model, loss)


def row(prepared: Prepared) -> Batch:
    return build_batch(prepared.corpora["train"], SAMPLES, filler=prepared.encoder.template.filler())


def model_with(prepared: Prepared, attention: Attention) -> tuple[PreTrainedModel, RowForward]:
    model = AutoModelForImageTextToText.from_pretrained(prepared.files.folder)
    attention.install(model)
    isolation = choose_isolation(prepared.files.family, torch.device("cpu"))
    return model, RowForward(PixelNormalizer(prepared.files), isolation, attention)


@pytest.mark.parametrize("name", HERE)
def test_a_row_equals_its_samples_alone(
    prepared: Prepared, expected: tuple[torch.Tensor, dict[str, torch.Tensor]], name: str
) -> None:
    model, forward = model_with(prepared, HERE[name])
    found = forward.summed_loss(model, row(prepared))
    assert relative(found, expected[0]) < TOLERANCE
    assert difference(gradients(model, found), expected[1]) < GRADIENT_TOLERANCE


@pytest.mark.parametrize("name", ["sample_sdpa", "varlen"])
def test_checkpointing_changes_nothing(
    prepared: Prepared, expected: tuple[torch.Tensor, dict[str, torch.Tensor]], name: str
) -> None:
    model, forward = model_with(prepared, HERE[name])
    model.train().activation_checkpointing_enable({"use_reentrant": False})
    found = forward.summed_loss(model, row(prepared))
    assert relative(found, expected[0]) < TOLERANCE
    assert difference(gradients(model, found), expected[1]) < GRADIENT_TOLERANCE


@pytest.mark.parametrize("name", ["sample_sdpa", "varlen"])
def test_under_autocast_kernels_get_its_precision(prepared: Prepared, name: str) -> None:
    """The kernel of varlen refuses a mixture; query and key leave the rotary embedding in float32."""
    losses = []
    for attention in (MASKED_SDPA, HERE[name]):
        model, forward = model_with(prepared, attention)
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(forward.summed_loss(model, row(prepared)))
    assert relative(losses[1], losses[0]) < 0.01


@pytest.mark.parametrize("name", ["sample_sdpa", "varlen"])
def test_without_the_samples_starts_nothing_is_computed(prepared: Prepared, name: str) -> None:
    """Else samples would see each other, without a word."""
    model, _ = model_with(prepared, HERE[name])
    batch = row(prepared)
    with pytest.raises(ModelError, match="must be told where samples start"):
        model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)


def test_a_model_is_saved_without_the_attention_it_was_trained_with(
    prepared: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("saved")
    model, _ = model_with(prepared, SAMPLE_SDPA)
    model.save_pretrained(folder)
    loaded = AutoModelForImageTextToText.from_pretrained(folder)
    assert "triptych" not in (folder / "config.json").read_text()
    assert loaded.config.text_config._attn_implementation == "sdpa"
