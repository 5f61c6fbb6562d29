"""The cost of a sample: what config.json says it costs is what the model itself is counted to cost."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import families
import tiny
from triptych.family.family import read_model_files
from triptych.forward.flops import FlopCounter
from triptych.model.loading import empty_model
from triptych.model.trainable import set_up_training
from triptych.planning.cost import SampleCost, model_cost
from triptych.planning.plan import Lengths
from triptych.run.prepare import prepare
from triptych.run.run_file import load
from triptych.run.settings import ModelSettings
from triptych.terminal import Terminal

RECIPES: dict[str, dict[str, Any]] = {
    "full": {},
    "language alone": {"freeze": ["vision", "merger"]},
    "frozen tower": {"freeze": ["vision"]},
    "slices": {"freeze": ["vision[:1]", "language[1:]"]},
    "upper layers": {"freeze": ["vision", "merger", "language[:1]"]},
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("family", families.FAMILIES)
def test_what_config_json_says_is_what_is_counted_on_the_model(
    family: str, recipe: dict[str, Any], tmp_path: Path
) -> None:
    settings = ModelSettings(path=str(tiny.write_model(tmp_path, family=family)), **recipe)
    files = read_model_files(settings.path)
    cost = model_cost(settings.recipe, files.shapes)
    with torch.device("meta"):
        model = set_up_training(empty_model(settings), files.family, settings, torch.float32)
    counter = FlopCounter(model, files.family, model.config)
    patch = counter.passes["vision"] + counter.passes["merger"] / counter.merge
    # Left out: the router of a mixture, the convolution of recurrent layers.
    assert cost.token == pytest.approx(counter.passes["language"], rel=0.02)
    assert cost.patch == pytest.approx(patch, rel=1e-6)
    assert cost.target == counter.passes["head"]


def test_adapters_leave_out_the_gradients_of_what_they_adapt(small_model_dir: Path) -> None:
    frozen = {"freeze": ["vision", "merger"]}
    shapes = read_model_files(str(small_model_dir)).shapes
    full, lora = (
        model_cost(ModelSettings(path=str(small_model_dir), train=train, **frozen).recipe, shapes)
        for train in ("full", "lora")
    )
    assert lora.token == pytest.approx(full.token * 2 / 3)
    assert (lora.patch, lora.token_pair) == (full.patch, full.token_pair)


def test_a_sample_costs_the_sum_of_what_it_holds() -> None:
    cost = SampleCost(token=5e6, token_pair=1e6, target=2e6, patch=3e6, patch_pair=4e6)
    lengths = Lengths(np.array([10, 7]), np.array([8, 0]))
    squares = np.array([32.0, 0.0])  # two images of 4 patches each; and none
    assert cost.of(lengths, squares, np.array([6, 1])).tolist() == [
        50 + 100 + 12 + 24 + 4 * (16 + 16),
        35 + 49 + 2,
    ]


@pytest.mark.parametrize("limits", [(), ("data.max_pixels=6000",), ("data.sample_image_tokens=20",)])
def test_the_squares_of_patches_are_those_of_the_images_shown(
    small_model_dir: Path, tmp_path: Path, limits: tuple[str, ...]
) -> None:
    data = tiny.write_dataset(tmp_path, 20)
    settings = load(tiny.write_run(tmp_path, small_model_dir, data), limits)
    corpus = prepare(settings, ("train",), Terminal()).corpora["train"]
    grid = corpus.geometry.grid
    shown = [
        sum(math.prod(grid(image.resized_height, image.resized_width)) ** 2 for image in corpus.images(index))
        for index in range(len(corpus))
    ]
    # Exact, but for images that were shrunk into a sample's budget.
    assert corpus.squared_patches == pytest.approx(shown, rel=0.2 if "sample" in "".join(limits) else 1e-12)
    assert len(corpus.costs(SampleCost(1e6, 0, 0, 0, 0))) == 20
