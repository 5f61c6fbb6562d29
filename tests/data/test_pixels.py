"""Pixels: early resizes and cheap copies change no byte; the fast decode acts only where the target is half or less."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image

import tiny
from equivalence import image_files
from triptych.images import measure, pixels
from triptych.images.geometry import Geometry
from triptych.rows.feature_store import entry_name

GEOMETRY = Geometry(patch_size=14, merge_size=2, temporal_patch_size=2, min_pixels=56 * 56, max_pixels=112 * 112)


def plainly(path: Path, resized: tuple[int, int]) -> Image.Image:
    """Decoded whole, turned, converted, and only then resized."""
    return pixels.load_rgb(str(path)).resize(resized[::-1], Image.Resampling.BICUBIC)


def cut(image: Image.Image, geometry: Geometry) -> NDArray[np.uint8]:
    """The patches by their definition."""
    patch, merge = geometry.patch_size, geometry.merge_size
    values = np.asarray(image)
    rows, columns = values.shape[0] // geometry.factor, values.shape[1] // geometry.factor
    blocks = values.reshape(rows, merge, patch, columns, merge, patch, 3)
    return blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3 * patch**2)


def measured(path: Path) -> tuple[int, int]:
    found = measure.measure(str(path))
    return found.height, found.width


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """dB"""
    return float(10 * np.log10(255**2 / np.square(one.astype(float) - other).mean()))


@pytest.mark.parametrize("decode", ["exact", "fast"])
@pytest.mark.parametrize("name", image_files.FILES)
def test_an_early_resize_gives_the_bytes_of_a_late_one(tmp_path: Path, name: str, decode: pixels.Decode) -> None:
    path = tmp_path / name
    path.write_bytes(image_files.FILES[name]())
    size = measured(path)
    for resized in ((84, 112), (28, 196), (196, 28)):
        if decode == "fast" and min(size[0] / resized[0], size[1] / resized[1]) >= 2:
            continue
        patches = pixels.load_patches(str(path), size, resized, GEOMETRY, decode)
        assert np.array_equal(patches, cut(plainly(path, resized), GEOMETRY))


def test_mirroring_and_turning_upside_down_commute_with_the_resize() -> None:
    random = np.random.default_rng(0)
    for _ in range(60):
        height, width, target = int(random.integers(9, 200)), int(random.integers(9, 200)), random.integers(9, 150, 2)
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))
        for turn in (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM):
            turned = image.transpose(turn)
            late, early = (pixels.resize(one, tuple(target), GEOMETRY) for one in (turned, image))
            assert late.tobytes() == early.transpose(turn).tobytes()


@pytest.mark.parametrize(("patch", "merge"), [(14, 2), (16, 2), (14, 1), (8, 3)])
def test_patches_are_cut_by_their_definition(patch: int, merge: int) -> None:
    geometry = Geometry(patch, merge, 2, 1, 10**6)
    image = tiny.image(3 * geometry.factor, 5 * geometry.factor)
    assert np.array_equal(pixels.patchify(image, geometry), cut(image, geometry))
    grey = image.convert("L")
    assert np.array_equal(pixels.patchify(grey, geometry), cut(grey.convert("RGB"), geometry))


@pytest.mark.parametrize("orientation", [1, 2, 3, 6, 8])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_fast_acts_where_the_target_is_half_or_less(tmp_path: Path, mode: str, orientation: int) -> None:
    path = tmp_path / "large.jpg"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    tiny.image(450, 676, mode=mode).save(path, exif=exif, quality=95)
    size = measured(path)
    assert size == ((676, 450) if orientation > 4 else (450, 676))
    small = (112, 84) if orientation > 4 else (84, 112)
    exact, fast = (pixels.load_patches(str(path), size, small, GEOMETRY, way) for way in ("exact", "fast"))
    assert not np.array_equal(exact, fast)
    assert psnr(exact, fast) > 30
    # One side is over half.
    for resized in ((252, 112), (84, 364)):
        target = resized[::-1] if orientation > 4 else resized
        exact, fast = (pixels.load_patches(str(path), size, target, GEOMETRY, way) for way in ("exact", "fast"))
        assert np.array_equal(exact, fast)


def test_fast_decodes_fewer_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.jpg"
    tiny.image(800, 1200).save(path)
    decoded: list[tuple[int, int]] = []
    original = measure.load

    def load(image: Image.Image, location: str) -> None:
        original(image, location)
        decoded.append(image.size)

    monkeypatch.setattr(measure, "load", load)
    for resized in ((420, 588), (392, 588), (196, 280), (84, 112)):
        pixels.load_patches(str(path), (800, 1200), resized, GEOMETRY, "fast")
    assert decoded == [(1200, 800), (600, 400), (300, 200), (150, 100)]


@pytest.mark.parametrize("suffix", ["PNG", "WEBP"])
def test_fast_is_exact_for_other_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "large"
    tiny.image(300, 400).save(path, suffix, lossless=True)
    exact, fast = (pixels.load_patches(str(path), (300, 400), (84, 112), GEOMETRY, way) for way in ("exact", "fast"))
    assert np.array_equal(exact, fast)


@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_a_file_that_has_another_size_than_measured_is_refused(tmp_path: Path, decode: pixels.Decode) -> None:
    path = tmp_path / "large.jpg"
    tiny.image(400, 600).save(path)
    with pytest.raises(measure.ImageError, match=r"400 x 600, measured as 200 x 300"):
        pixels.load_patches(str(path), (200, 300), (84, 112), GEOMETRY, decode)


@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_a_truncated_file_is_unreadable(tmp_path: Path, decode: pixels.Decode) -> None:
    buffer = io.BytesIO()
    tiny.image(400, 600).save(buffer, "JPEG")
    path = tmp_path / "cut.jpg"
    path.write_bytes(buffer.getvalue()[:-2000])
    with pytest.raises(measure.ImageError, match="truncated"):
        pixels.load_patches(str(path), (400, 600), (84, 112), GEOMETRY, decode)


def test_exact_and_fast_features_are_stored_under_two_names() -> None:
    exact, fast = (entry_name("/a.jpg", (1000, 1), (84, 112), way) for way in ("exact", "fast"))
    assert exact != fast
    assert exact == entry_name("/a.jpg", (1000, 1), (84, 112)), "what is stored already stays valid"
