"""A row against its samples alone, as transformers itself computes them: loss and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel

import tiny
from families import FAMILIES
from triptych.corpus.corpus import Corpus
from triptych.forward.batch import build_batch
from triptych.forward.isolation import PACKED, Isolation, choose_isolation
from triptych.forward.row_forward import RowForward
from triptych.model.loading import PixelNormalizer
from triptych.run.prepare import Prepared, prepare
from triptych.run.run_file import load
from triptych.terminal import Terminal
from triptych.training.train import LEAKAGE

TOLERANCE = 1e-5
"""Relative, float32."""
DECAYS = (".A_log", ".dt_bias")
CANCELLING = 10
"""How much larger the error of a decay's gradient may be: its terms cancel, and transformers' own sum over the samples
was seen 4e-5 away from the same sum in float64."""


@pytest.fixture(scope="module", params=FAMILIES)
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("loss")
    model = tiny.write_model(folder / "model", family=request.param, max_pixels=96 * 96)
    data = tiny.write_dataset(folder, 16, seed=3)
    return prepare(load(tiny.write_run(folder, model, data)), ("train",), Terminal())


@pytest.fixture(scope="module")
def model(prepared: Prepared) -> PreTrainedModel:
    return AutoModelForImageTextToText.from_pretrained(prepared.files.folder)


def forward(prepared: Prepared) -> RowForward:
    """As training takes it on this device: a family that cannot be packed here goes sample by sample."""
    return RowForward(PixelNormalizer(prepared.files), choose_isolation(prepared.files.family, torch.device("cpu")))


def alone(model: PreTrainedModel, prepared: Prepared, index: int) -> torch.Tensor:
    """Summed loss of one sample through transformers' own path: its positions, its shift, its cross entropy."""
    corpus = prepared.corpora["train"]
    layout = corpus.layout(index)
    ids = torch.from_numpy(layout.input_ids)[None]
    labels = torch.from_numpy(np.where(layout.supervised, layout.input_ids, -100))[None]
    inputs = {"input_ids": ids, "labels": labels}
    batch = build_batch(corpus, [index], filler=prepared.encoder.template.filler())
    if len(layout.grids):
        inputs["pixel_values"] = PixelNormalizer(prepared.files)(batch.pixels)
        inputs["image_grid_thw"] = torch.from_numpy(layout.grids)
        inputs["mm_token_type_ids"] = (ids == prepared.encoder.template.image_pad).int()
    return model(**inputs).loss * layout.supervised.sum()


def row(model: PreTrainedModel, prepared: Prepared, indices: list[int], *, with_image: bool = False) -> torch.Tensor:
    filler = prepared.encoder.template.filler()
    batch = build_batch(prepared.corpora["train"], indices, filler=filler, with_image=with_image)
    return forward(prepared).summed_loss(model, batch)


def gradients(model: PreTrainedModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """Largest relative difference of a parameter's gradient."""
    assert left.keys() == right.keys()
    return max(
        float((left[n] - right[n]).norm() / right[n].norm().clamp(min=1e-12))
        / (CANCELLING if n.endswith(DECAYS) else 1)
        for n in left
    )


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((found - expected).abs() / expected.abs()).detach())


def with_and_without_images(corpus: Corpus) -> tuple[list[int], list[int]]:
    counts = [len(corpus.images(index)) for index in range(len(corpus))]
    return [i for i, n in enumerate(counts) if n], [i for i, n in enumerate(counts) if not n]


def test_a_row_equals_the_sum_of_its_samples_run_alone(model: PreTrainedModel, prepared: Prepared) -> None:
    indices = list(range(len(prepared.corpora["train"])))
    imaged, plain = with_and_without_images(prepared.corpora["train"])
    assert imaged, "the row must mix samples with images"
    assert plain, "and without"
    expected = torch.stack([alone(model, prepared, index) for index in indices]).sum()
    found = row(model, prepared, indices)
    assert relative(found, expected) < TOLERANCE
    assert difference(gradients(model, found), gradients(model, expected)) < TOLERANCE


def test_permuting_the_samples_of_a_row_changes_nothing(model: PreTrainedModel, prepared: Prepared) -> None:
    first, second = [0, 1, 2, 3, 4, 5], [4, 2, 5, 0, 3, 1]
    one, other = row(model, prepared, first), row(model, prepared, second)
    assert relative(one, other) < TOLERANCE
    assert difference(gradients(model, one), gradients(model, other)) < TOLERANCE


def test_a_sample_is_not_moved_by_its_neighbours(model: PreTrainedModel, prepared: Prepared) -> None:
    sums = [row(model, prepared, [0, 1, neighbour]) - row(model, prepared, [neighbour]) for neighbour in (2, 3, 7)]
    expected = row(model, prepared, [0, 1])
    assert all(relative(found, expected) < TOLERANCE for found in sums)


def test_a_filler_image_adds_neither_loss_nor_gradient(model: PreTrainedModel, prepared: Prepared) -> None:
    _, plain = with_and_without_images(prepared.corpora["train"])
    without = row(model, prepared, plain)
    filled = row(model, prepared, plain, with_image=True)
    assert relative(filled, without) < TOLERANCE
    expected, found = gradients(model, without), gradients(model, filled)
    vision = [name for name in found if "visual" in name]
    assert vision, "the tower took part, as other ranks expect"
    assert all(not found[name].any() for name in vision)
    assert (
        difference(
            {n: found[n] for n in expected if n not in vision}, {n: g for n, g in expected.items() if n not in vision}
        )
        < TOLERANCE
    )


def test_a_row_without_samples_weighs_nothing_but_reaches_every_part(
    model: PreTrainedModel, prepared: Prepared
) -> None:
    loss = row(model, prepared, [])
    assert loss.item() == 0.0
    found = gradients(model, loss)
    assert found.keys() == dict(model.named_parameters()).keys() - {"lm_head.weight"}
    assert not any(g.any() for g in found.values())


def test_an_isolating_mask_is_what_keeps_samples_apart(model: PreTrainedModel, prepared: Prepared) -> None:
    """The test above must be able to fail: with positions that do not restart, samples see each other."""
    batch = build_batch(prepared.corpora["train"], [0, 1, 2], filler=prepared.encoder.template.filler())
    batch.position_ids[0, 0] = torch.arange(batch.input_ids.shape[1])
    leaking = RowForward(PixelNormalizer(prepared.files), PACKED).summed_loss(model, batch)
    apart = row(model, prepared, [0, 1, 2])
    assert relative(leaking, apart) > 10 * TOLERANCE


def test_a_recurrent_family_would_leak_if_its_rows_were_packed_here(model: PreTrainedModel, prepared: Prepared) -> None:
    if not prepared.files.family.recurrent:
        assert forward(prepared).isolation is PACKED
        return
    batch = build_batch(prepared.corpora["train"], [0, 1, 2], filler=prepared.encoder.template.filler())
    normalizer = PixelNormalizer(prepared.files)
    leaking = RowForward(normalizer, PACKED).summed_loss(model, batch)
    assert relative(leaking, row(model, prepared, [0, 1, 2])) > 100 * TOLERANCE, "the positions alone are not enough"
    with pytest.raises(ValueError, match="can't keep packed sequences apart"):
        RowForward(normalizer, Isolation(packs=True, recurrent=True)).summed_loss(model, batch)
    assert "CUDA" in forward(prepared).isolation.reason


def test_the_look_before_training_sees_a_leak_and_nothing_else(model: PreTrainedModel, prepared: Prepared) -> None:
    normalizer, device = PixelNormalizer(prepared.files), torch.device("cpu")
    leakage = RowForward(normalizer, PACKED).leakage(model, model.config.text_config.vocab_size, device)
    assert leakage > 3 * LEAKAGE if prepared.files.family.recurrent else leakage < TOLERANCE
