"""Images cost, and look, what transformers' image processor makes of them, however awkward the file."""

from __future__ import annotations

import base64
import math
import random
import struct
import zlib
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, WebPImagePlugin
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

import tiny
from equivalence import image_files, oracle
from triptych.commands.encode import PixelLimits, encode
from triptych.commands.options import SourceOptions
from triptych.images import identity, measure, pixels
from triptych.images.geometry import Geometry, share_tokens
from triptych.text.conversation import ImageRef

TOKEN = 28 * 28
"""Pixels behind one language token."""
LIMITS = [(4 * TOKEN, 1280 * TOKEN), (TOKEN, 6 * TOKEN), (40 * TOKEN, 64 * TOKEN)]
"""(min_pixels, max_pixels): of a release; that shrink most images here; that enlarge most of them."""


def geometry(min_pixels: int = 4 * TOKEN, max_pixels: int = 1280 * TOKEN) -> Geometry:
    return Geometry(patch_size=14, merge_size=2, temporal_patch_size=2, min_pixels=min_pixels, max_pixels=max_pixels)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of every awkward image."""
    folder = tmp_path_factory.mktemp("awkward")
    for name, content in image_files.FILES.items():
        (folder / name).write_bytes(content())
    return folder


@dataclass
class Run:
    """What one call of ``triptych encode --pixels`` says of every awkward image."""

    lines: dict[str, dict[str, Any]] = field(default_factory=dict)
    pixels: dict[str, NDArray[np.float32]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def encoded(files: Path, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], Run]:
    """Limits -> the run under them; a sample per image, each after one that all samples share."""
    folder = tmp_path_factory.mktemp("encoded")
    names = list(image_files.FILES)
    data = oracle.write_records(
        folder, [tiny.record(["rgb.jpg", name], "<image>and<image>?", "Yes.") for name in names]
    )
    result: dict[tuple[int, int], Run] = {}
    for limits in LIMITS:
        out, store = folder / "out.jsonl", folder / "out.npz"
        least, most = limits
        encode(
            [str(data)],
            model=str(model_dir),
            source=SourceOptions(str(files)),
            limits=PixelLimits(least, most),
            out=out,
            pixels=store,
        )
        arrays = np.load(store)
        run = result[limits] = Run()
        # A rejected image has no line: its own test misses it, and no other.
        for number, line in enumerate(oracle.read_lines(out)):
            name = names[int(line["origin"].rpartition(":")[2]) - 1]
            run.lines[name], run.pixels[name] = line, arrays[f"pixel_values_{number}"]
    return result


@pytest.mark.parametrize("name", image_files.FILES)
def test_an_image_measures_as_it_decodes_upright(files: Path, name: str) -> None:
    measured = measure.measure(str(files / name))
    upright = oracle.rgb(files / name)
    assert (measured.height, measured.width) == (upright.height, upright.width)


@pytest.mark.parametrize("limits", LIMITS, ids=["released", "shrinking", "enlarging"])
@pytest.mark.parametrize("name", image_files.FILES)
def test_an_image_becomes_the_grid_tokens_and_values_of_the_processor(
    encoded: dict[tuple[int, int], Run], files: Path, model_dir: Path, name: str, limits: tuple[int, int]
) -> None:
    run, processor = encoded[limits], oracle.processor(*limits)
    upright = [oracle.rgb(files / "rgb.jpg"), oracle.rgb(files / name)]
    expected = processor(upright, return_tensors="np")
    assert name in run.lines, "rejected"
    line, values = run.lines[name], run.pixels[name]

    assert line["image_grid_thw"] == expected["image_grid_thw"].tolist()
    patches = [processor.get_number_of_image_patches(image.height, image.width) for image in upright]
    pad = oracle.tokenizer(model_dir).convert_tokens_to_ids("<|image_pad|>")
    assert line["input_ids"].count(pad) == sum(patches) // 4
    assert values.dtype == np.float32
    assert values.shape == expected["pixel_values"].shape
    assert np.abs(values - expected["pixel_values"]).max() < 1e-5
    about = line["images"][1]
    assert (about["height"], about["width"]) == (upright[1].height, upright[1].width)
    assert (about["resized_height"], about["resized_width"]) == tuple(
        14 * side for side in expected["image_grid_thw"][1][1:]
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", [name for name in image_files.ORIENTED if not name.endswith(".jpg")])
def test_an_oriented_image_is_read_as_the_scene_it_shows(files: Path, name: str, orientation: int) -> None:
    read = pixels.load_rgb(str(files / f"orientation-{orientation}-{name}"))
    assert np.array_equal(np.asarray(read), np.asarray(image_files.upright()))


@pytest.mark.parametrize(
    ("tag", "kind", "value"),
    [
        (ExifTags.Base.ImageWidth, 2, b"abc\0"),
        (ExifTags.Base.ImageWidth, 9, b"\xff\xff\xff\xff"),
        (ExifTags.Base.Compression, 2, b"abc\0"),
    ],
    ids=["width-is-text", "width-is-negative", "compression-is-text"],
)
def test_exif_that_pillow_cannot_write_back_still_turns_the_image(
    tmp_path: Path, tag: int, kind: int, value: bytes
) -> None:
    """``ImageOps.exif_transpose`` raises on these: it rewrites the data after turning the image."""
    entries = [
        struct.pack(">HHI4s", tag, kind, 4 if kind == 2 else 1, value),
        struct.pack(">HHI4s", ExifTags.Base.Orientation, 3, 1, b"\0\6\0\0"),
    ]
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, len(entries)) + b"".join(entries) + b"\0\0\0\0"
    path = tmp_path / "odd.webp"
    path.write_bytes(image_files.saved(image_files.stored(6), "WEBP", lossless=True, exif=exif))
    measured = measure.measure(str(path))
    assert (measured.height, measured.width) == (image_files.HEIGHT, image_files.WIDTH)
    assert np.array_equal(np.asarray(pixels.load_rgb(str(path))), np.asarray(image_files.upright()))


def test_an_orientation_behind_the_pixels_counts_where_the_exif_in_front_has_none(tmp_path: Path) -> None:
    first, *rest = image_files.png_chunks((image_files.FILES["orientation-6-xmp-after.png"])())
    plain = Image.Exif()
    plain[ExifTags.Base.Make] = "Camera"
    path = tmp_path / "both.png"
    path.write_bytes(image_files.png([first, (b"eXIf", plain.tobytes().removeprefix(b"Exif\0\0")), *rest]))
    measured = measure.measure(str(path))
    assert (measured.height, measured.width) == (image_files.HEIGHT, image_files.WIDTH)
    assert np.array_equal(np.asarray(pixels.load_rgb(str(path))), np.asarray(image_files.upright()))


def test_damaged_exif_is_no_orientation(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    content = image_files.exif(6).tobytes()[:20]
    path.write_bytes(image_files.saved(image_files.upright(), "JPEG", exif=content))
    measured = measure.measure(str(path))
    image = pixels.load_rgb(str(path))
    assert (measured.height, measured.width) == (image.height, image.width) == (image_files.HEIGHT, image_files.WIDTH)


def test_transparency_shows_white_and_never_the_hidden_colours(files: Path) -> None:
    read = np.asarray(pixels.load_rgb(str(files / "rgba.png"))).astype(int)
    hidden = np.asarray(tiny.image(image_files.HEIGHT, image_files.WIDTH, seed=3)).astype(int)
    assert (read[:, 0] == 255).all()
    assert (read[:, -1] == hidden[:, -1]).all()
    assert (hidden[:, 0] < 220).any()


def test_a_clear_value_of_16_bit_grey_shows_white(tmp_path: Path) -> None:
    values = (np.arange(16).reshape(4, 4) * 4000).astype(">u2")
    path = tmp_path / "clear.png"
    path.write_bytes(image_files.raw_png(4, 4, 16, 0, values.tobytes(), (b"tRNS", struct.pack(">H", 8000))))
    expected = values // 256
    expected[0, 2] = 255
    assert np.array_equal(np.asarray(pixels.load_rgb(str(path)))[..., 0], expected)


@pytest.mark.parametrize("name", ["grey-16.png", "grey-16.tiff", "grey-32.tiff"])
def test_16_bit_grey_keeps_its_range(files: Path, name: str) -> None:
    read = np.asarray(pixels.load_rgb(str(files / name)))
    high_bytes = np.frombuffer(image_files._wide(1), np.uint8).reshape(image_files.HEIGHT, image_files.WIDTH, 2)[..., 0]
    assert np.array_equal(read, np.repeat(high_bytes[..., None], 3, axis=-1))
    assert len(np.unique(read)) > 200


def test_values_outside_16_bits_are_scaled_by_their_range(tmp_path: Path) -> None:
    path = tmp_path / "signed.tiff"
    Image.fromarray(np.array([[-5, 300, 70_000]], np.int32)).save(path)
    assert np.asarray(pixels.load_rgb(str(path)))[0, :, 0].tolist() == [0, 1, 255]


@pytest.mark.parametrize(("height", "width"), [(6000, 4000), (3001, 8003)])
def test_a_huge_image_equals_the_processors(tmp_path: Path, height: int, width: int) -> None:
    path = tmp_path / "huge.jpg"
    tiny.image(height // 8, width // 8).resize((width, height)).save(path, exif=image_files.exif(6))
    upright = oracle.rgb(path)
    measured = measure.measure(str(path))
    assert (measured.height, measured.width) == (upright.height, upright.width) == (width, height)

    model = geometry(max_pixels=256 * TOKEN)
    resized = model.resized(measured.height, measured.width)
    patches = pixels.load_patches(str(path), (width, height), resized, model)
    expected = oracle.processor(4 * TOKEN, 256 * TOKEN)(upright, do_normalize=False, do_rescale=False)
    assert model.grid(*resized) == tuple(expected["image_grid_thw"][0].tolist())
    shown = np.repeat(patches.reshape(-1, 3, 1, 196), 2, axis=2).reshape(len(patches), -1)
    assert np.array_equal(shown, expected["pixel_values"])


# Measuring


def without_decoding(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note every image whose pixels are decoded from now on."""
    decoded: list[str] = []
    for owner in (ImageFile.ImageFile, WebPImagePlugin.WebPImageFile):
        original = owner.load

        def load(image: Any, original: Any = original) -> Any:
            decoded.append(str(image.format))
            return original(image)

        monkeypatch.setattr(owner, "load", load)
    return decoded


def png_with_text_behind_pixels() -> bytes:
    """As ImageMagick writes them: dates after the pixels."""
    *chunks, end = image_files.png_chunks(image_files.saved(image_files.upright(), "PNG", exif=image_files.exif(1)))
    return image_files.png([*chunks, (b"tEXt", b"date:create\x002026-01-01T00:00:00"), end])


@pytest.mark.parametrize(
    "make",
    [
        *(
            image_files.FILES[name]
            for name in ("rgb.jpg", "progressive.jpg", "cmyk.jpg", "rgb.png", "palette-alphas.png")
        ),
        *(image_files.FILES[name] for name in ("grey-16.png", "lossy.webp", "rgba.webp", "palette.gif")),
        *(image_files.FILES[f"orientation-6-{name}"] for name in ("exif.jpg", "exif-before.png", "xmp-before.png")),
        png_with_text_behind_pixels,
    ],
    ids=[
        *("jpeg", "progressive", "cmyk", "png", "palette", "16-bit", "webp", "clear-webp", "gif"),
        *("turned-jpeg", "turned-png", "turned-by-xmp", "text-behind-pixels"),
    ],
)
def test_measuring_an_ordinary_file_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    path = tmp_path / "image"
    path.write_bytes(make())
    decoded = without_decoding(monkeypatch)
    measure.measure(str(path))
    assert decoded == []
    pixels.load_rgb(str(path))
    assert decoded, "the test would not notice a decoder"


@pytest.mark.parametrize("suffix", ["JPEG", "PNG"])
def test_damage_in_the_middle_of_a_big_file_is_not_looked_for(tmp_path: Path, suffix: str) -> None:
    content = bytearray(image_files.saved(tiny.image(600, 800), suffix))
    middle = len(content) // 2
    content[middle : middle + 4000] = bytes(4000)
    path = tmp_path / "damaged"
    path.write_bytes(content)
    measured = measure.measure(str(path))
    assert (measured.height, measured.width) == (600, 800)


def test_a_png_damaged_in_the_middle_is_unreadable_when_it_is_decoded(tmp_path: Path) -> None:
    content = bytearray(image_files.saved(tiny.image(600, 800), "PNG"))
    content[len(content) // 2 : len(content) // 2 + 4000] = bytes(4000)
    path = tmp_path / "damaged.png"
    path.write_bytes(content)
    with pytest.raises(measure.ImageError) as caught:
        pixels.load_rgb(str(path))
    assert caught.value.code == "image-unreadable"


def bomb() -> bytes:
    """A PNG that says it is 60,000 px square."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return image_files.png([(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")])


def changed(content: bytes, offset: int, values: bytes) -> bytes:
    return content[:offset] + values + content[offset + len(values) :]


UNREADABLE = {
    "empty": b"",
    "one-byte": b"\xff",
    "garbage": bytes(range(256)) * 20,
    "text": b"<html>not found</html>",
    "bomb": bomb(),
    "no-width.png": image_files.png([(b"IHDR", struct.pack(">IIBBBBB", 0, 5, 8, 2, 0, 0, 0)), (b"IEND", b"")]),
    "no-height.bmp": changed(image_files.saved(image_files.upright(), "BMP"), 22, bytes(4)),
    "header-only.jpg": image_files.FILES["rgb.jpg"]()[:200],
    "header-only.png": image_files.FILES["rgb.png"]()[:33],
    **{
        f"truncated-{name}": image_files.FILES[name]()[:-40]
        for name in ("rgb.jpg", "progressive.jpg", "rgb.png", "grey-16.png", "lossless.webp", "palette.gif", "rgb.bmp")
    },
    **{
        f"halved-{name}": image_files.FILES[name]()[: len(image_files.FILES[name]()) // 2]
        for name in ("rgb.jpg", "rgb.png", "lossy.webp", "palette.gif", "rgb.bmp", "rgb.tiff", "lzw.tiff")
    },
    "truncated-exif-after.png": image_files.FILES["orientation-6-exif-after.png"]()[:-400],
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_whole_image_is_unreadable_before_anything_is_trained(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(UNREADABLE[name])
    with pytest.raises(measure.ImageError) as caught:
        measure.measure(str(path))
    assert caught.value.code == "image-unreadable"
    assert name in caught.value.message


@pytest.mark.parametrize("name", ["rgb.jpg", "rgb.png", "palette.gif", "lossy.webp", "rgb.bmp"])
def test_bytes_behind_the_end_of_a_image_do_no_harm(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(image_files.FILES[name]() + b"\r\n some other tool's notes")
    measured = measure.measure(str(path))
    assert (measured.height, measured.width) == (image_files.HEIGHT, image_files.WIDTH)
    assert pixels.load_rgb(str(path)).size == (image_files.WIDTH, image_files.HEIGHT)


def test_an_image_that_is_not_there_is_missing(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    for name in ("nothing.png", "folder.png", "folder.png/nothing.png"):
        with pytest.raises(measure.ImageError) as caught:
            measure.measure(str(tmp_path / name))
        assert caught.value.code == "image-missing"
        assert name in caught.value.message


@pytest.mark.parametrize(
    ("height", "width", "extreme"),
    [(1, 199, False), (199, 1, False), (10, 2000, False), (1, 201, True), (201, 1, True), (10, 2001, True)],
)
def test_the_aspect_is_refused_exactly_where_the_processor_refuses_it(
    tmp_path: Path, height: int, width: int, extreme: bool
) -> None:
    path = tmp_path / "long.png"
    tiny.image(height, width).save(path)
    if extreme:
        with pytest.raises(ValueError, match="aspect ratio"):
            oracle.processor(*LIMITS[0])(oracle.rgb(path))
        with pytest.raises(measure.ImageError) as caught:
            measure.measure(str(path))
        assert caught.value.code == "image-extreme"
    else:
        oracle.processor(*LIMITS[0])(oracle.rgb(path))
        measured = measure.measure(str(path))
        assert (measured.height, measured.width) == (height, width)


@pytest.mark.parametrize("name", ["rgb.jpg", "rgba.png", "orientation-6-exif.webp"])
def test_a_data_uri_is_the_file_it_holds(files: Path, name: str) -> None:
    uri = "data:image/whatever;base64," + base64.b64encode((files / name).read_bytes()).decode()
    location = identity.locate(ImageRef(uri), str(files), identity.Rules(confine=True))
    upright = oracle.rgb(files / name)
    measured = measure.measure(location)
    assert (measured.height, measured.width) == (upright.height, upright.width)
    assert np.array_equal(np.asarray(pixels.load_rgb(location)), np.asarray(upright))


@pytest.mark.parametrize("payload", [";base64,", ";base64,%%%", ";base64,é", ",plain", ""], ids=ascii)
def test_a_data_uri_without_an_image_is_unreadable(payload: str) -> None:
    with pytest.raises(measure.ImageError) as caught:
        measure.measure(f"data:image/png{payload}")
    assert caught.value.code == "image-unreadable"
    assert "data URI" in caught.value.message


def test_a_truncated_data_uri_is_unreadable(files: Path) -> None:
    uri = "data:image/jpeg;base64," + base64.b64encode((files / "rgb.jpg").read_bytes()[:-300]).decode()
    with pytest.raises(measure.ImageError) as caught:
        measure.measure(uri)
    assert caught.value.code == "image-unreadable"


# Geometry


def random_sizes(count: int, seed: int) -> list[tuple[int, int]]:
    """Sizes from tiny to huge, some of them as long and thin as is allowed."""
    chance = random.Random(seed)
    sizes = []
    while len(sizes) < count:
        height = int(math.exp(chance.uniform(0, math.log(9000))))
        width = min(9000, max(1, int(height * math.exp(chance.uniform(-1, 1) * chance.choice((0.7, 2, 5.3))))))
        if max(height, width) <= 200 * min(height, width):
            sizes.append((height, width))
    return sizes


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("patch_size", "merge_size"), [(14, 2), (16, 2)])
def test_resized_is_smart_resize(seed: int, patch_size: int, merge_size: int) -> None:
    chance = random.Random(seed)
    factor = patch_size * merge_size
    for height, width in random_sizes(4000, seed):
        least = chance.choice((1, 4, 10, 256)) * factor**2 + chance.choice((0, 0, 0, 17))
        most = least + chance.choice((0, 1, 5, 100, 5000, 15000)) * factor**2 + chance.choice((0, 0, 391))
        model = Geometry(patch_size, merge_size, 2, least, most)
        resized = model.resized(height, width)
        assert resized == smart_resize(height, width, factor, least, most)
        assert model.grid(*resized) == (1, resized[0] // patch_size, resized[1] // patch_size)
        assert 4 * model.tokens(*resized) == resized[0] * resized[1] // patch_size**2


@pytest.mark.parametrize(("height", "width"), [(1, 201), (201, 1), (3, 1000)])
def test_resized_refuses_what_smart_resize_refuses(height: int, width: int) -> None:
    with pytest.raises(ValueError, match="aspect ratio"):
        smart_resize(height, width)
    with pytest.raises(ValueError, match="aspect ratio"):
        geometry().resized(height, width)


def smallest(size: tuple[int, int], model: Geometry) -> int:
    """Fewest tokens that ``smart_resize`` can be brought to give an image without going below ``min_pixels``."""
    natural = smart_resize(*size, 28, model.min_pixels, model.max_pixels)
    fewest = natural[0] * natural[1] // TOKEN
    for most in range(1, fewest):
        height, width = smart_resize(*size, 28, model.min_pixels, most * TOKEN)
        if height * width >= model.min_pixels:
            return min(fewest, height * width // TOKEN)
    return fewest


def is_reachable(size: tuple[int, int], resized: tuple[int, int], model: Geometry) -> bool:
    """Whether ``smart_resize`` gives ``resized`` under some ``max_pixels``."""
    if resized == smart_resize(*size, 28, model.min_pixels, model.max_pixels):
        return True
    # Sizes grow with the limit: bisect it.
    low, high = 1, model.max_pixels
    while low < high:
        middle = (low + high) // 2
        height, width = smart_resize(*size, 28, model.min_pixels, middle)
        if height * width < resized[0] * resized[1]:
            low = middle + 1
        else:
            high = middle
    return smart_resize(*size, 28, model.min_pixels, low) == resized


def sharing_cases() -> list[tuple[list[tuple[int, int]], Geometry, int]]:
    """(sizes, model, budget), from ample to impossible budgets."""
    chance = random.Random(11)
    cases = []
    for seed in range(150):
        sizes = random_sizes(chance.randint(1, 12), seed)
        model = geometry(chance.choice((1, 4, 16)) * TOKEN, chance.choice((64, 1280)) * TOKEN)
        cost = sum(model.tokens(*model.resized(*size)) for size in sizes)
        cases.append((sizes, model, max(1, int(cost * chance.uniform(0.02, 1.1)))))
    return cases


def test_shared_tokens_keep_the_budget_wherever_min_pixels_allows_it() -> None:
    kept = 0
    for sizes, model, budget in sharing_cases():
        total = sum(model.tokens(*resized) for resized in share_tokens(sizes, model, budget))
        if sum(smallest(size, model) for size in sizes) <= budget:
            assert total <= budget, (sizes, model, budget)
            kept += 1
    assert kept > 50


def test_shared_sizes_are_what_smart_resize_gives_and_never_under_min_pixels() -> None:
    for sizes, model, budget in sharing_cases():
        for size, resized in zip(sizes, share_tokens(sizes, model, budget), strict=True):
            assert is_reachable(size, resized, model), (size, resized, model)
            natural = model.resized(*size)
            assert resized[0] * resized[1] >= min(model.min_pixels, natural[0] * natural[1])


def test_sharing_never_enlarges_a_image_and_keeps_those_under_the_share() -> None:
    for sizes, model, budget in sharing_cases():
        natural = [model.resized(*size) for size in sizes]
        shared = share_tokens(sizes, model, budget)
        costs = [model.tokens(*size) for size in natural]
        assert all(model.tokens(*size) <= cost for size, cost in zip(shared, costs, strict=True))
        if sum(costs) <= budget:
            assert shared == natural
        # What fits an equal share of the budget gives nothing, unless another image cannot come down to its own.
        share = budget // len(sizes)
        if all(smallest(size, model) <= share for size in sizes):
            for before, after, cost in zip(natural, shared, costs, strict=True):
                assert cost > share or before == after, (sizes, model, budget)


def test_a_larger_budget_makes_no_image_smaller() -> None:
    for sizes, model, budget in sharing_cases()[:60]:
        costs = [
            [model.tokens(*size) for size in share_tokens(sizes, model, amount)]
            for amount in range(budget, budget + 40, 5)
        ]
        for fewer, more in pairwise(costs):
            assert all(a <= b for a, b in zip(fewer, more, strict=True)), (sizes, model, budget)


def test_sharing_settles_at_one_cap_for_all() -> None:
    # 1 token is 28 x 28 px: naturals of 20 x 15 = 300, 10 x 10 = 100 and 30 x 30 = 900 tokens
    sizes = [(20 * 28, 15 * 28), (10 * 28, 10 * 28), (30 * 28, 30 * 28)]
    shared = share_tokens(sizes, geometry(), 800)
    assert shared == [(560, 420), (280, 280), (560, 560)]


@pytest.mark.parametrize("seed", range(3))
def test_shrunk_keeps_its_cap_wherever_min_pixels_allows_it(seed: int) -> None:
    chance = random.Random(seed)
    for size in random_sizes(150, seed):
        model = geometry(chance.choice((1, 4, 16)) * TOKEN, chance.choice((64, 1280)) * TOKEN)
        cap = chance.randint(1, 300)
        tokens = model.tokens(*model.shrunk(*size, cap))
        assert tokens <= max(cap, smallest(size, model)), (size, model, cap)
