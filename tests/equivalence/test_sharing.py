"""A row that holds once what its samples share gives the loss and gradients of each sample alone, in every family."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel

import tiny
from equivalence import varlen
from equivalence.test_loss import alone, difference, gradients, relative
from families import FAMILIES
from triptych.errors import ModelError
from triptych.forward.attention import IMPLEMENTATIONS, Attention
from triptych.forward.batch import Batch, build_batch
from triptych.forward.isolation import choose_isolation
from triptych.forward.row_forward import RowForward
from triptych.model.loading import PixelNormalizer
from triptych.rows.sharing import load_or_find
from triptych.run.prepare import Prepared, prepare
from triptych.run.run_file import load
from triptych.terminal import Terminal

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TOLERANCE = 1e-5
"""Relative, float32."""
GRADIENT_TOLERANCE = {"qwen3_5_moe": 5e-5}
"""Of a gradient, where it is not the same: see ``test_attention.py``."""
WORDS = " ".join(tiny.WORDS)
ATTENTION = {"sample_sdpa": Attention("sample_sdpa", *IMPLEMENTATIONS["sample_sdpa"]), "varlen": varlen.reference()}


def dialogue(images: list[str], *texts: str, marks: int | None = None) -> dict[str, Any]:
    """Question, answer, question, answer, ...; the images come first."""
    turns = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]
    turns[0]["value"] = "<image>" * (len(images) if marks is None else marks) + turns[0]["value"]
    return {"conversations": turns, "images": images}


def records(folder: Path) -> list[dict[str, Any]]:
    """Samples that share their start in every way that there is, and some that share nothing."""
    a, b, c = (str(tiny.write_image(folder / f"{name}.png", 90 + 20 * n, 100, seed=n)) for n, name in enumerate("abc"))
    history = ["What is shown?", "The first.", "And what else? " + tiny.WORDS[2], "Both are equal."]
    return [
        *(dialogue([a, b], question, answer) for question in tiny.WORDS[:3] for answer in tiny.ANSWERS[:2]),
        dialogue([a, b], *history),
        dialogue([a, b], *history, "Which digit is larger?", "yes"),
        dialogue([a, b], *history, "Which digit is larger?", "yes and no"),
        dialogue([a, b], *history[:2], "Compare.", "yes"),
        dialogue([b, a], "The same images the other way round.", "yes"),
        dialogue([a, c], "Another second image.", "yes"),
        dialogue([], WORDS, "yes"),
        dialogue([], WORDS, "No, it is a dog."),
        dialogue([], "Short.", "yes"),
        dialogue([c], "Alone.", "yes"),
        dialogue([c, a, a], "The same image twice.", "yes"),
    ]


@pytest.fixture(scope="module", params=FAMILIES)
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("sharing")
    model = tiny.write_model(folder / "model", family=request.param, max_pixels=96 * 96)
    (folder / "train.json").write_text(json.dumps(records(folder)))
    return prepare(load(tiny.write_run(folder, model, folder / "train.json")), ("train",), Terminal())


@pytest.fixture(scope="module")
def expected(prepared: Prepared) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients of the samples run alone as transformers runs them."""
    model = AutoModelForImageTextToText.from_pretrained(prepared.files.folder)
    loss = torch.stack([alone(model, prepared, index) for index in range(len(prepared.corpora["train"]))]).sum()
    return loss.detach(), gradients(model, loss)


def in_order(prepared: Prepared) -> list[int]:
    return load_or_find(prepared.corpora["train"]).samples.tolist()


def row(prepared: Prepared, indices: list[int]) -> Batch:
    filler = prepared.encoder.template.filler()
    share = "images" if prepared.files.family.recurrent else "starts"
    return build_batch(prepared.corpora["train"], indices, filler=filler, share=share)


def model_with(prepared: Prepared, attention: Attention) -> tuple[PreTrainedModel, RowForward]:
    model = AutoModelForImageTextToText.from_pretrained(prepared.files.folder)
    attention.install(model)
    isolation = choose_isolation(prepared.files.family, torch.device("cpu"))
    return model, RowForward(PixelNormalizer(prepared.files), isolation, attention)


@pytest.mark.parametrize(("name", "checkpointing"), [("sample_sdpa", False), ("sample_sdpa", True), ("varlen", False)])
def test_a_shared_row_equals_its_samples_alone(
    prepared: Prepared, expected: tuple[torch.Tensor, dict[str, torch.Tensor]], name: str, checkpointing: bool
) -> None:
    if prepared.files.family.recurrent and (checkpointing or name != "sample_sdpa"):
        return  # its samples go through the model one by one here, as in every row
    model, forward = model_with(prepared, ATTENTION[name])
    if checkpointing:
        model.train().activation_checkpointing_enable({"use_reentrant": False})
    batch = row(prepared, in_order(prepared))
    found = forward.summed_loss(model, batch)
    assert relative(found, expected[0]) < TOLERANCE
    limit = GRADIENT_TOLERANCE.get(prepared.files.family.name, TOLERANCE)
    assert difference(gradients(model, found), expected[1]) < limit


def test_what_is_shared_is_there_once(prepared: Prepared) -> None:
    corpus, order = prepared.corpora["train"], in_order(prepared)
    batch = row(prepared, order)
    alone = int(corpus.lengths.tokens.sum())
    distinct = {(image.location, image.resized_height) for index in order for image in corpus.images(index)}
    merged = corpus.geometry.merge_size**2
    patches = sum(
        np.prod(layout.grids[n]) for index in order for n, layout in [(0, corpus.layout(index))] if len(layout.grids)
    )
    assert len(set(batch.decoded)) == len(distinct) == 3, "every image is decoded once"
    assert len(batch.pixels) == batch.image_grid_thw[list(batch.decoded)].prod(1).sum() < patches * merged
    assert len(batch.targets) == int(corpus.supervised.sum()), "every sample's targets count"
    if prepared.files.family.recurrent:
        assert batch.input_ids.shape[1] == alone, "recurrent layers cannot branch"
        assert not batch.paths.shared
    else:
        assert batch.input_ids.shape[1] < 0.6 * alone
        assert batch.paths.shared
        assert batch.distinct is not None
        assert len(batch.distinct.targets) < len(batch.targets), "a target that samples share is computed once"
        predicts = np.unique(np.stack((batch.logits_to_keep, batch.targets)), axis=1)
        assert len(np.unique(predicts[0])) < predicts.shape[1], "a last shared token predicts different first tokens"


def test_each_sample_weighs_what_it_weighs_alone(prepared: Prepared) -> None:
    """A shared target counts by the sum of its weights, and the losses that are told apart are each sample's own."""
    model, forward = model_with(prepared, ATTENTION["sample_sdpa"])
    order = in_order(prepared)
    batch = row(prepared, order)
    samples = batch.sample_of_target()
    batch = replace(batch, weights=1.0 + samples % 3)
    filler = prepared.encoder.template.filler()
    with torch.no_grad():
        found, each = forward.losses(model, batch)
        expected = torch.zeros(())
        for number, index in enumerate(order):
            own, losses = forward.losses(model, build_batch(prepared.corpora["train"], [index], filler=filler))
            assert torch.allclose(each[samples == number], losses, atol=1e-5), f"sample {index}"
            expected = expected + own * (1 + number % 3)
    assert relative(found, expected) < TOLERANCE


def test_the_tower_sees_each_image_once(prepared: Prepared) -> None:
    """Also where samples go through the model one by one, as those of recurrent families do here."""
    model, forward = model_with(prepared, ATTENTION["sample_sdpa"])
    seen: list[int] = []
    model.model.visual.register_forward_hook(lambda _tower, pixels, _output: seen.append(len(pixels[0])))
    batch = row(prepared, in_order(prepared))
    forward.summed_loss(model, batch)
    assert seen == [len(batch.pixels)]


def test_the_look_before_training_sees_what_shared_rows_would_leak(prepared: Prepared) -> None:
    if prepared.files.family.recurrent:
        return  # their rows share no tokens
    vocabulary, cpu = 400, torch.device("cpu")
    for attention in ATTENTION.values():
        model, forward = model_with(prepared, attention)
        assert forward.leakage(model, vocabulary, cpu, shared=True) < TOLERANCE, attention.name
    masked, forward = model_with(prepared, Attention("sdpa", "sdpa", "sdpa"))
    with pytest.raises(ModelError, match="sdpa attention knows no samples that share their start"):
        forward.leakage(masked, vocabulary, cpu, shared=True)


def test_unpacked_its_samples_are_what_they_are_alone(prepared: Prepared) -> None:
    """A row that does not fit in memory is computed so."""
    corpus, order = prepared.corpora["train"], in_order(prepared)
    filler = prepared.encoder.template.filler()
    for index, part in zip(order, row(prepared, order).unpack(), strict=True):
        single = build_batch(corpus, [index], filler=filler)
        for name in (
            "input_ids",
            "position_ids",
            "pixels",
            "image_grid_thw",
            "logits_to_keep",
            "targets",
            "weights",
            "cu_seqlens",
        ):
            assert torch.equal(getattr(part, name), getattr(single, name)), f"sample {index}: {name}"
        assert (part.max_seqlen, part.samples) == (single.max_seqlen, single.samples)


def test_any_order_and_any_part_is_exact(prepared: Prepared) -> None:
    """Samples may be lost from a row, and neighbours need not be those of the plan."""
    if prepared.files.family.recurrent:
        return  # its samples are unpacked, which the test above compares
    model, forward = model_with(prepared, ATTENTION["sample_sdpa"])
    random = np.random.default_rng(0)
    count = len(prepared.corpora["train"])
    filler = prepared.encoder.template.filler()
    for _ in range(3):
        indices = random.permutation(count)[: random.integers(2, count)].tolist()
        indices += indices[-1:]  # one comes twice
        with torch.no_grad():
            found = forward.summed_loss(model, row(prepared, indices))
            plain = forward.summed_loss(model, build_batch(prepared.corpora["train"], indices, filler=filler))
        assert relative(found, plain) < TOLERANCE, f"samples {indices}"
