"""Budgets: what a sample may cost is kept by resizing whole images, and no image is ever cut."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from triptych.errors import Origin
from triptych.images.geometry import Geometry
from triptych.run import run_file
from triptych.text.layout import Budget, Fitted, TooLong, TooLongError, fit, lay_out
from triptych.text.template import Encoded

GEOMETRY = Geometry(patch_size=14, merge_size=2, temporal_patch_size=2, min_pixels=56 * 56, max_pixels=28 * 28 * 1280)
START, PAD, END, TEXT, ANSWER = 1, 2, 3, 4, 5

sizes = st.lists(st.tuples(st.integers(20, 3000), st.integers(20, 3000)), max_size=8)


def encode(images: int, question: int = 10, answer: int = 5) -> Encoded:
    """Images first, then ``question`` tokens that are not targets and ``answer`` tokens that are."""
    ids = [START, PAD, END] * images + [TEXT] * question + [ANSWER] * answer
    supervised = [False] * (3 * images + question) + [True] * answer
    return Encoded(np.array(ids, np.int32), np.array(supervised), np.arange(1, 3 * images, 3, dtype=np.int32))


def cost(fitted: Fitted) -> int:
    """Tokens of the sample once its images are expanded."""
    layout = lay_out(fitted.encoded, fitted.resized, GEOMETRY, Origin("x", 1))
    return len(layout.input_ids)


def image_tokens(resized: list[tuple[int, int]]) -> list[int]:
    return [GEOMETRY.tokens(*size) for size in resized]


def natural(found: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [GEOMETRY.resized(*size) for size in found]


def smallest(found: list[tuple[int, int]]) -> list[int]:
    """Tokens of each image at the least size that its limits allow."""
    return [GEOMETRY.tokens(*GEOMETRY.shrunk(*size, 1)) for size in found]


def test_twelve_large_images_shrink_into_2048_tokens_whole() -> None:
    encoded = encode(12, question=60, answer=20)
    fitted = fit(encoded, [(1200, 1600)] * 12, GEOMETRY, Budget(max_tokens=2048, too_long="shrink"))
    layout = lay_out(fitted.encoded, fitted.resized, GEOMETRY, Origin("x", 1))
    assert fitted.shrunk
    assert 1800 < len(layout.input_ids) <= 2048
    assert layout.grids.shape == (12, 3)
    assert (layout.grids[:, 1:] % 2 == 0).all()
    assert (layout.input_ids == PAD).sum() == layout.grids.prod(axis=1).sum() // 4
    assert (layout.input_ids == START).sum() == (layout.input_ids == END).sum() == 12
    assert layout.supervised.sum() == 20


@pytest.mark.parametrize("too_long", ["error", "drop"])
def test_without_shrinking_twelve_large_images_are_too_long(too_long: TooLong) -> None:
    with pytest.raises(TooLongError, match=r"tokens \(104 text, \d+,\d+ image\), over max_tokens of 2,048"):
        fit(encode(12, 60, 20), [(1200, 1600)] * 12, GEOMETRY, Budget(max_tokens=2048, too_long=too_long))


@settings(max_examples=200, deadline=None)
@given(found=sizes, question=st.integers(1, 200), limit=st.integers(1, 3000))
def test_shrinking_keeps_the_limit_or_says_that_text_and_smallest_images_are_over_it(
    found: list[tuple[int, int]], question: int, limit: int
) -> None:
    encoded = encode(len(found), question)
    try:
        fitted = fit(encoded, found, GEOMETRY, Budget(max_tokens=limit))
    except TooLongError:
        assert len(encoded.ids) - len(found) + sum(smallest(found)) > limit
        return
    assert cost(fitted) <= limit
    assert fitted.encoded is encoded, "no text is cut"
    assert fitted.shrunk == (fitted.resized != natural(found))
    for (height, width), (full_height, full_width) in zip(fitted.resized, natural(found), strict=True):
        assert height % GEOMETRY.factor == width % GEOMETRY.factor == 0
        assert GEOMETRY.min_pixels <= height * width <= full_height * full_width


@settings(max_examples=200, deadline=None)
@given(found=sizes, limit=st.integers(1, 3000))
def test_images_under_their_share_keep_their_size(found: list[tuple[int, int]], limit: int) -> None:
    full = image_tokens(natural(found))
    try:
        fitted = fit(encode(len(found)), found, GEOMETRY, Budget(image_tokens=limit))
    except TooLongError:
        assert sum(smallest(found)) > limit
        return
    given_tokens = image_tokens(fitted.resized)
    assert sum(given_tokens) <= limit
    assert fitted.shrunk == (sum(full) > limit)
    even_share = limit // max(1, len(found))
    for tokens, before in zip(given_tokens, full, strict=True):
        assert tokens == before or even_share < before, "an image under an even share is left alone"


@pytest.mark.parametrize("too_long", ["shrink", "error", "drop", "cut_text"])
def test_a_sample_that_fits_is_left_alone_whatever_the_rule(too_long: TooLong) -> None:
    encoded = encode(2)
    found = [(300, 400), (100, 100)]
    exact = len(encoded.ids) - 2 + sum(image_tokens(natural(found)))
    fitted = fit(encoded, found, GEOMETRY, Budget(max_tokens=exact, too_long=too_long))
    assert (fitted.resized, fitted.shrunk, fitted.encoded) == (natural(found), False, encoded)
    with pytest.raises(TooLongError):
        fit(encoded, found, GEOMETRY, Budget(max_tokens=exact - 1, too_long="error"))


@pytest.mark.parametrize("too_long", ["shrink", "error", "drop", "cut_text"])
def test_the_image_budget_shrinks_under_every_rule(too_long: TooLong) -> None:
    fitted = fit(encode(2), [(1000, 1000)] * 2, GEOMETRY, Budget(image_tokens=200, too_long=too_long))
    assert sum(image_tokens(fitted.resized)) <= 200
    with pytest.raises(TooLongError, match="8 tokens even at min_pixels, over the limit of 7"):
        fit(encode(2), [(1000, 1000)] * 2, GEOMETRY, Budget(image_tokens=7, too_long=too_long))


@settings(max_examples=200, deadline=None)
@given(images=st.integers(0, 3), question=st.integers(1, 60), answer=st.integers(1, 60), limit=st.integers(1, 150))
def test_cutting_text_reaches_the_limit_but_never_an_image_or_the_whole_answer(
    images: int, question: int, answer: int, limit: int
) -> None:
    encoded = encode(images, question, answer)
    found = [(500, 500)] * images
    least = 2 * images + sum(smallest(found)) + question + 1
    try:
        fitted = fit(encoded, found, GEOMETRY, Budget(max_tokens=limit, too_long="cut_text"))
    except TooLongError:
        assert least > limit
        return
    assert least <= limit
    assert cost(fitted) <= limit
    kept = len(fitted.encoded.ids)
    assert np.array_equal(fitted.encoded.ids, encoded.ids[:kept]), "only the end is cut"
    assert np.array_equal(fitted.encoded.supervised, encoded.supervised[:kept])
    assert np.array_equal(fitted.encoded.slots, encoded.slots)
    if kept < len(encoded.ids):
        assert cost(fitted) == limit, "not a token more than needed"
        assert image_tokens(fitted.resized) == smallest(found), "images give way before text"


def test_text_is_not_cut_where_an_image_stands_behind_it() -> None:
    ids = np.array([TEXT] * 50 + [START, PAD, END] + [ANSWER], np.int32)
    encoded = Encoded(ids, ids == ANSWER, np.array([51], np.int32))
    with pytest.raises(TooLongError, match="cut an image or leave no answer"):
        fit(encoded, [(56, 56)], GEOMETRY, Budget(max_tokens=40, too_long="cut_text"))


def test_text_is_cut_up_to_the_end_mark_of_an_image_and_no_further() -> None:
    ids = np.array([TEXT] + [ANSWER] * 5 + [START, PAD, END] + [ANSWER] * 5, np.int32)
    encoded = Encoded(ids, ids == ANSWER, np.array([7], np.int32))
    whole_image = 1 + 5 + 2 + GEOMETRY.tokens(56, 56)
    fitted = fit(encoded, [(56, 56)], GEOMETRY, Budget(max_tokens=whole_image, too_long="cut_text"))
    assert fitted.encoded.ids.tolist() == ids[:9].tolist()
    with pytest.raises(TooLongError, match="cut an image"):
        fit(encoded, [(56, 56)], GEOMETRY, Budget(max_tokens=whole_image - 1, too_long="cut_text"))


@settings(max_examples=100, deadline=None)
@given(found=sizes, question=st.integers(0, 20))
def test_a_layout_expands_each_pad_and_nothing_else(found: list[tuple[int, int]], question: int) -> None:
    encoded = encode(len(found), question)
    resized = natural(found)
    layout = lay_out(encoded, resized, GEOMETRY, Origin("x", 1))
    tokens = image_tokens(resized)
    assert len(layout.input_ids) == len(encoded.ids) - len(found) + sum(tokens)
    assert layout.supervised.shape == layout.input_ids.shape == layout.position_ids.shape[1:]
    assert layout.position_ids.shape[0] == 3
    assert layout.supervised.sum() == encoded.supervised.sum()
    assert not layout.supervised[layout.input_ids == PAD].any()
    # Collapsing each run of pads gives the ids back.
    first = (layout.input_ids != PAD) | (np.concatenate(([0], layout.input_ids[:-1])) != PAD)
    assert np.array_equal(layout.input_ids[first], encoded.ids)
    assert (layout.grids.prod(axis=1) // 4).tolist() == tokens


@pytest.mark.parametrize(
    ("data", "batch", "expected"),
    [
        ({}, {"samples": 4}, Budget(None, None, "shrink")),
        ({"max_tokens": 100}, {"samples": 4}, Budget(100, None, "shrink")),
        ({"max_tokens": 100}, {"tokens": 50}, Budget(50, None, "shrink")),
        ({"max_tokens": 100}, {"tokens": 200, "patches": 1000}, Budget(100, 250, "shrink")),
        ({"sample_image_tokens": 30}, {"tokens": 200, "patches": 1003}, Budget(200, 30, "shrink")),
        ({"sample_image_tokens": 300, "too_long": "drop"}, {"tokens": 200, "patches": 1003}, Budget(200, 250, "drop")),
    ],
)
def test_a_sample_must_also_fit_in_a_row(
    tmp_path: Path, data: dict[str, object], batch: dict[str, int], expected: Budget
) -> None:
    content = {
        "model": {"path": "m"},
        "data": {"train": [{"path": "x.json"}], **data},
        "batch": batch,
        "output": "o",
    }
    (tmp_path / "run.yaml").write_text(json.dumps(content))
    assert run_file.load(tmp_path / "run.yaml").budget(merge_size=2) == expected


def test_a_run_that_asks_for_rows_of_few_patches_gives_samples_of_few_patches(tmp_path: Path, model_dir: Path) -> None:
    from triptych.corpus.loading import load_or_build
    from triptych.family.family import read_model_files
    from triptych.run.prepare import make_encoder

    tiny.write_image(tmp_path / "a.png", 600, 800)
    (tmp_path / "x.json").write_text(json.dumps([tiny.record(["a.png"] * 3, "<image>" * 3, "yes")]))
    batch = {"samples": None, "tokens": 400, "patches": 300}
    run = run_file.load(tiny.write_run(tmp_path, model_dir, tmp_path / "x.json", batch=batch))
    encoder = make_encoder(read_model_files(str(model_dir)), run)
    corpus, _ = load_or_build(run.sources("train"), encoder, tmp_path / "cache")
    layout = corpus.layout(0)
    assert layout.grids.prod(axis=1).sum() <= 300
    assert len(layout.grids) == 3
