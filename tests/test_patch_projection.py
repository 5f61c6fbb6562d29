"""The patch embedding as a product: the convolution's values and gradients, under the convolution's names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import tiny
from families import FAMILIES
from triptych.family.family import read_model_files
from triptych.model.loading import PixelNormalizer, load_model
from triptych.model.patch_embed import PatchProjection, project_by_product
from triptych.run.settings import ModelSettings


def tower(folder: Path) -> nn.Module:
    return load_model(ModelSettings(path=str(folder))).base_model.visual


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_projects_by_a_product_with_the_same_result(tmp_path: Path, family: str) -> None:
    folder = tiny.write_model(tmp_path / "model", family=family)
    convolved, multiplied = tower(folder), tower(folder)
    names = list(multiplied.state_dict())
    assert project_by_product(multiplied) == 1
    assert list(multiplied.state_dict()) == names
    normalizer = PixelNormalizer(read_model_files(str(folder)))
    side = normalizer.patch_area
    pixels = torch.randint(256, (16, 3 * side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = convolved.patch_embed(normalizer(pixels))
    weight = "patch_embed.proj.weight"
    (wanted,) = torch.autograd.grad(expected.square().sum(), [convolved.get_parameter(weight)])
    for values in (normalizer.repeated(pixels), normalizer(pixels)):
        found = multiplied.patch_embed(values)
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
        (made,) = torch.autograd.grad(found.square().sum(), [multiplied.get_parameter(weight)])
        assert (made - wanted).norm() < 1e-5 * wanted.norm()


def test_pixels_are_not_copied_for_the_second_frame(small_model_dir: Path) -> None:
    normalizer = PixelNormalizer(read_model_files(str(small_model_dir)))
    pixels = torch.zeros(4, 3 * normalizer.patch_area, dtype=torch.uint8)
    repeated = normalizer.repeated(pixels)
    assert normalizer.frames > 1
    assert repeated.untyped_storage().nbytes() == 4 * pixels.numel()
    assert torch.equal(repeated.flatten(1), normalizer(pixels))


def test_weights_stay_the_same_objects_and_their_state(small_model_dir: Path) -> None:
    model = tower(small_model_dir)
    weight = model.patch_embed.proj.weight.requires_grad_(False)
    project_by_product(model)
    assert isinstance(model.patch_embed.proj, PatchProjection)
    assert model.patch_embed.proj.weight is weight


def test_a_convolution_that_overlaps_is_left_alone() -> None:
    model = nn.Module()
    model.patch_embed = nn.Module()
    model.patch_embed.proj = nn.Conv3d(3, 8, (2, 14, 14), (2, 7, 7))
    assert project_by_product(model) == 0
