"""``data.resize: llamafactory``: sizes and pixels of images that are scaled to an area before the model rounds them."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from triptych.images import pixels
from triptych.images.geometry import Geometry
from triptych.images.resample import resize_like_torchvision

OWN = Geometry(14, 2, 2, 56 * 56, 28 * 28 * 1280)


def scaled(height: int, width: int, smallest: int, largest: int) -> tuple[int, int]:
    """Size after the first resize, step by step on an image, as LLaMA-Factory 0.9.5 does it."""
    image = Image.new("1", (width, height))
    for limit, outside in ((largest, image.width * image.height > largest), (smallest, None)):
        if outside is None:
            outside = image.width * image.height < smallest
        if outside:
            factor = math.sqrt(limit / (image.width * image.height))
            image = image.resize((int(image.width * factor), int(image.height * factor)))
    if min(image.width, image.height) < 28:
        image = image.resize((max(image.width, 28), max(image.height, 28)))
    if image.width / image.height > 200:
        image = image.resize((image.height * 180, image.height))
    if image.height / image.width > 200:
        image = image.resize((image.width, image.width * 180))
    return image.height, image.width


def test_sizes_follow_their_rule_and_then_the_model_s() -> None:
    random = np.random.default_rng(0)
    sizes = [tuple(random.integers(8, 1600, 2).tolist()) for _ in range(300)] + [(10, 1990), (2800, 14), (1, 1)]
    for smallest, largest in ((1024, 589_824), (40_000, 262_144), (1, 12_845_056)):
        geometry = Geometry(14, 2, 2, 56 * 56, 28 * 28 * 1280, (smallest, largest))
        for height, width in sizes:
            first = scaled(height, width, smallest, largest)
            assert geometry.first_size(height, width) == first, (height, width, largest)
            assert geometry.resized(height, width) == OWN.resized(*first), (height, width, largest)
    assert OWN.first_size(5, 9000) == (5, 9000)


def test_sizes_may_exceed_the_limit_and_servers_get_the_nearest_one() -> None:
    geometry = Geometry(14, 2, 2, 56 * 56, 28 * 28 * 1280, (1024, 262_144))
    assert math.prod(geometry.resized(600, 800)) > 262_144
    servers = geometry.for_servers()
    assert (servers.min_pixels, servers.max_pixels, servers.scaled_first) == (56 * 56, 262_144, None)
    assert OWN.for_servers() is OWN
    tokens = geometry.tokens(*geometry.resized(600, 800))
    assert geometry.tokens(*geometry.shrunk(600, 800, tokens // 2)) <= tokens // 2, "budgets hold as before"


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_pixels_go_through_both_resizes(tmp_path: Path, orientation: int) -> None:
    geometry = Geometry(14, 2, 2, 56 * 56, 28 * 28 * 1280, (1024, 20_000))
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    tiny.image(150, 260).save(path, exif=exif)
    upright = pixels.load_rgb(str(path))
    size = upright.height, upright.width
    resized = geometry.resized(*size)
    first = geometry.first_size(*size)
    expected = torchvision_resized(upright.resize(first[::-1], Image.Resampling.BICUBIC), *resized)
    found = pixels.load_patches(str(path), size, resized, geometry)
    assert np.array_equal(found, pixels.patchify(expected, geometry))
    assert np.array_equal(found, pixels.patchify(pixels.resize(upright, resized, geometry), geometry)), "as in a chat"
    once = pixels.patchify(torchvision_resized(upright, *resized), geometry)
    assert not np.array_equal(found, once)


def torchvision_resized(image: Image.Image, height: int, width: int) -> Image.Image:
    """By the function of torch that torchvision's resize calls."""
    values = torch.from_numpy(np.array(image, ndmin=3) if image.mode == "L" else np.array(image).transpose(2, 0, 1))
    resized = torch.nn.functional.interpolate(values[None], (height, width), mode="bicubic", antialias=True)[0]
    return Image.fromarray(resized[0].numpy() if image.mode == "L" else resized.permute(1, 2, 0).numpy())


def test_the_last_resize_is_torchvision_s_to_the_last_bit() -> None:
    random = np.random.default_rng(0)
    sizes = [tuple(random.integers(1, 300, 4).tolist()) for _ in range(60)]
    sizes += [(100, 90, 112, 84), (280, 283, 280, 280), (299, 280, 308, 280), (56, 84, 56, 84), (1, 1, 28, 28)]
    for number, (height, width, *target) in enumerate(sizes):
        mode = "L" if number % 4 == 0 else "RGB"
        for name, image in (
            ("smooth", tiny.image(height, width, seed=number)),
            ("noise", Image.fromarray(random.integers(0, 256, (height, width, 3)).astype(np.uint8))),
        ):
            found = resize_like_torchvision(image.convert(mode), *target)
            expected = torchvision_resized(image.convert(mode), *target)
            assert np.array_equal(np.asarray(found), np.asarray(expected)), (name, mode, height, width, target)
