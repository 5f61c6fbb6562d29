"""Grey of more than 8 bits: what the file uses of its range is what the model sees, never black or cut off at white."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tiny
from triptych.images import measure, pixels
from triptych.images.geometry import Geometry

HEIGHT, WIDTH = 60, 80
RAMP = np.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)


def read(tmp_path: Path, values: Any, suffix: str) -> Any:
    path = tmp_path / f"grey{suffix}"
    Image.fromarray(values).save(path)
    measured = measure.measure(str(path))
    assert (measured.height, measured.width) == (HEIGHT, WIDTH)
    shown = np.asarray(pixels.load_rgb(str(path)))
    assert (shown == shown[..., :1]).all()
    return shown[..., 0].astype(int)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize(("kind", "suffix"), [("uint16", ".png"), ("uint16", ".tif"), ("int32", ".tif")])
def test_the_bits_in_use_decide(tmp_path: Path, bits: int, kind: str, suffix: str) -> None:
    values = np.floor(RAMP * (2**bits - 1)).astype(kind)
    assert np.array_equal(read(tmp_path, values, suffix), values.astype(int) >> (bits - 8))


@pytest.mark.parametrize(
    ("low", "high"), [(-1024, 3071), (-5, 70_000), (0, 1_966_050_000), (100_000, 100_900), (-32768, 32767)]
)
def test_other_integers_go_from_black_to_white(tmp_path: Path, low: int, high: int) -> None:
    shown = read(tmp_path, np.round(low + RAMP * (high - low)).astype(np.int32), ".tif")
    assert (shown.min(), shown.max()) == (0, 255)
    assert np.abs(shown - RAMP * 255).max() <= 1


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.5, 80.25), (-1.0, 1.0), (0.0, 1e-3), (-3e38, 3e38)])
def test_floating_point_is_scaled_by_its_range_and_fractions_from_0_to_1_as_they_are(
    tmp_path: Path, low: float, high: float
) -> None:
    values = (low + RAMP * high - RAMP * low).astype(np.float32)
    shown = read(tmp_path, values, ".tif")
    whole = high if low >= 0 and high <= 1 else None
    assert np.abs(shown - (RAMP * 255 * (whole or 1))).max() <= 1


def test_whole_numbers_in_floating_point_are_those_numbers(tmp_path: Path) -> None:
    values = np.floor(RAMP * 255).astype(np.float32)
    assert np.array_equal(read(tmp_path, values, ".tif"), values.astype(int))


def test_what_is_no_number_is_black_and_disturbs_nothing(tmp_path: Path) -> None:
    values = (RAMP * 40 + 0.5).astype(np.float32)
    values[0, :3] = (np.nan, np.inf, -np.inf)
    shown = read(tmp_path, values, ".tif")
    assert shown[0, :3].tolist() == [0, 255, 0]
    assert np.abs(shown[1:] - (RAMP * 255)[1:]).max() <= 1


@pytest.mark.parametrize("value", [0, np.nan])
def test_an_image_without_any_range_is_black(tmp_path: Path, value: float) -> None:
    assert not read(tmp_path, np.full((HEIGHT, WIDTH), value, np.float32), ".tif").any()


@pytest.mark.parametrize("kind", ["uint16", "int32", "float32"])
def test_patches_are_those_of_the_8_bit_image(tmp_path: Path, kind: str) -> None:
    geometry = Geometry(patch_size=14, merge_size=2, temporal_patch_size=2, min_pixels=56 * 56, max_pixels=112 * 112)
    values = np.asarray(tiny.image(HEIGHT, WIDTH, mode="L"))
    deep, plain = tmp_path / "deep.tif", tmp_path / "plain.png"
    Image.fromarray(values.astype(kind)).save(deep)
    Image.fromarray(values).save(plain)
    found = [pixels.load_patches(str(path), (HEIGHT, WIDTH), (56, 84), geometry) for path in (deep, plain)]
    assert np.array_equal(*found)
