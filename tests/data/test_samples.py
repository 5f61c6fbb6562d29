"""Examining records: whatever stands in a file comes out as a sample or as coded problems, never as a crash."""

import base64
import copy
import io
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import tiny
from triptych.corpus.corpus import Corpus
from triptych.corpus.examine import CheckReport, Encoder
from triptych.corpus.loading import load_or_build
from triptych.errors import Code, Problem
from triptych.family.family import read_model_files
from triptych.images import measure
from triptych.images.pixels import load_patches
from triptych.sources.records import Source
from triptych.text.layout import Budget

CODES = set(get_args(Code))


@pytest.fixture(scope="module")
def encoder(model_dir: Path) -> Encoder:
    files = read_model_files(str(model_dir))
    return Encoder(files.template(), files.geometry, Budget(max_tokens=200))


def write_files(root: Path) -> Path:
    """Good images and every kind of file that is none, in ``root``."""
    tiny.write_image(root / "a.png", 60, 80)
    tiny.write_image(root / "b.jpg", 70, 50)
    tiny.write_image(root / "thin.png", 2, 500)
    (root / "empty.png").touch()
    (root / "text.png").write_text("not an image")
    (root / "cut.jpg").write_bytes((root / "b.jpg").read_bytes()[:-200])
    (root / "folder.png").mkdir()
    os.symlink("loop.png", root / "loop.png")
    os.mkfifo(root / "pipe.png")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A media folder."""
    return write_files(tmp_path_factory.mktemp("samples"))


def examine(folder: Path, elements: list[Any], encoder: Encoder | None, **source: Any) -> tuple[CheckReport, Corpus]:
    """Write ``elements`` as an array, examine them, and check what holds for any file."""
    path = folder / "data.json"
    path.write_bytes(orjson.dumps(elements))
    cache = Path(tempfile.mkdtemp(dir=folder))
    corpus, report = load_or_build([Source(str(path), **source)], encoder, cache)
    lines = [problem.origin.line for problem in report.problems]
    good = [corpus.origin(index).line for index in range(len(corpus))]
    assert sorted([*good, *set(lines)]) == list(range(1, len(elements) + 1)), "a record is a sample, or has a problem"
    assert lines == sorted(lines), "in input order"
    for problem in report.problems:
        assert problem.code in CODES
        assert problem.origin.path == str(path)
        assert 10 < len(problem.message) < 2000
        assert str(problem).startswith(f"{path}:{problem.origin.line}")
        orjson.dumps(problem.to_dict())
    if not any(isinstance(element, list) for element in elements):  # which is taken apart
        assert report.samples == len(elements)
    assert report.ok == len(corpus)
    return report, corpus


GOOD_FILES, BAD_FILES = ["a.png", "b.jpg"], ["thin.png", "empty.png", "text.png", "cut.jpg", "folder.png", "gone.png"]
SPECIAL_FILES = ["loop.png", "pipe.png", "/dev/zero", "/proc/self/mem"]
PATHS = ["", ".", "..", "/", "~", "*", "a.png/", "a\0b", "x" * 300, "x" * 5000, "a.png\n"]
ADDRESSES = ["file://", "file:///", "file://[", "file://%00", "http://[", "s3://a/b", "://", "data:", "data:,"]
INLINE = [f"data:image/png;base64,{payload}" for payload in ("", "é", "AAAA", "A", "A A=")]
names = st.sampled_from([*GOOD_FILES, *BAD_FILES, *SPECIAL_FILES, *PATHS, *ADDRESSES, *INLINE])
marks = ["<image>", "<image><image>", "hi", "", " ", "<|im_end|>", "<|image_pad|>", "图"]
texts = st.sampled_from(marks) | st.text(max_size=8)
roles = st.sampled_from(["user", "assistant", "system", "human", "gpt", "function"])
OUTER_KEYS = ["messages", "conversations", "images", "image", "system", "task", "videos", "tools"]
INNER_KEYS = ["role", "content", "from", "value", "loss", "type", "text", "image_url", "url"]
known = st.sampled_from([*OUTER_KEYS, *INNER_KEYS])
kinds = st.sampled_from(["text", "image", "image_url", "video"])
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | texts | names | roles | kinds
keys = known | st.text(max_size=5)
values = st.recursive(
    scalars,
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(known | st.text(max_size=5), children, max_size=5)
    ),
    max_leaves=20,
)
parts = st.fixed_dictionaries(
    {"type": kinds | values}, optional={"text": texts, "image": names, "image_url": names | values}
)
messages = st.fixed_dictionaries(
    {"role": roles | values, "content": texts | st.lists(parts, max_size=4) | values}, optional={"loss": values}
)
records = st.fixed_dictionaries(
    {"messages": st.lists(messages, max_size=5) | values},
    optional={"images": st.lists(names, max_size=3) | values, "system": values, "task": values, "videos": values},
)

GOOD: list[dict[str, Any]] = [
    tiny.record(["a.png", "b.jpg"], "<image><image>Which?", "The first.", task="t"),
    {"image": "a.png", "messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "yes"}]},
    {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "yes"}], "loss": True},
        ]
    },
]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything inside ``value``."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in list(items):
        yield value, key
        yield from places(child)


@st.composite
def mutants(draw: st.DrawFn) -> Any:
    """A good record after one to three changes at random places."""
    record = copy.deepcopy(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(record))
        if not found:
            break
        container, key = draw(st.sampled_from(found))
        match draw(st.sampled_from(["replace", "remove", "repeat", "wrap", "rename"])):
            case "replace":
                container[key] = draw(values)
            case "remove":
                del container[key]
            case "repeat" if isinstance(container, list):
                container.insert(key, copy.deepcopy(container[key]))
            case "wrap":
                container[key] = [container[key]]
            case "rename" if isinstance(container, dict):
                container[draw(known)] = container.pop(key)
    return record


@settings(max_examples=250, deadline=None)
@given(element=values | records, confine=st.booleans())
def test_no_value_crashes_the_examination(folder: Path, encoder: Encoder, element: Any, confine: bool) -> None:
    examine(folder, [element], encoder, confine=confine)


@settings(max_examples=250, deadline=None)
@given(element=mutants(), confine=st.booleans())
def test_no_change_of_a_good_record_crashes_the_examination(
    folder: Path, encoder: Encoder, element: Any, confine: bool
) -> None:
    examine(folder, [element], encoder, confine=confine)


def test_the_records_that_are_changed_are_good(folder: Path, encoder: Encoder) -> None:
    report, corpus = examine(folder, GOOD, encoder, confine=True)
    assert report.problems == []
    assert corpus.image_counts.tolist() == [2, 1, 1]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("gone.png", "image-missing"),
        ("folder.png", "image-missing"),
        ("a.png/", "image-missing"),
        ("a\0b", "image-missing"),
        ("x" * 300, "image-missing"),
        ("x" * 100_000, "image-missing"),
        ("https://example.com/a.png", "image-missing"),
        ("file://[", "image-missing"),
        ("empty.png", "image-unreadable"),
        ("text.png", "image-unreadable"),
        ("cut.jpg", "image-unreadable"),
        ("loop.png", "image-unreadable"),
        ("pipe.png", "image-unreadable"),
        ("/dev/zero", "image-unreadable"),
        ("data:image/png;base64,é", "image-unreadable"),
        ("data:image/png;base64,AAA", "image-unreadable"),
        ("data:image/png;base64,AAAA", "image-unreadable"),
        ("data:image/png,AAAA", "image-unreadable"),
        ("thin.png", "image-extreme"),
    ],
)
@pytest.mark.parametrize("times", [1, 2])
def test_an_image_that_cannot_be_used_is_named_with_its_code(folder: Path, name: str, code: str, times: int) -> None:
    element = tiny.record(["a.png", *[name] * times], "<image>" * (times + 1), "yes")
    report, _ = examine(folder, [element], None)
    assert [(problem.code, problem.image) for problem in report.problems] == [(code, n + 2) for n in range(times)]


@pytest.mark.parametrize("form", ["{path}", "file://{path}", "file://localhost{path}"])
def test_an_absolute_path_may_be_a_file_address(folder: Path, tmp_path: Path, encoder: Encoder, form: str) -> None:
    tiny.write_image(tmp_path / "with space#1.png", 60, 80)
    address = form.format(path=tmp_path / "with space#1.png")
    report, corpus = examine(folder, [tiny.record([address], "<image>?", "yes")], encoder)
    (image,) = corpus.images(0)
    assert (report.problems, image.height, image.width) == ([], 60, 80)


def test_inline_data_is_a_image_like_any_other(folder: Path, encoder: Encoder) -> None:
    uri = "data:image/png;base64," + base64.b64encode((folder / "a.png").read_bytes()).decode()
    elements = [tiny.record([name], "<image>?", "yes") for name in (uri, "a.png")]
    _, corpus = examine(folder, elements, encoder, confine=True)
    inline, file = corpus.layout(0), corpus.layout(1)
    assert inline.grids.tolist() == file.grids.tolist()
    assert inline.input_ids.tolist() == file.input_ids.tolist()


def test_images_outside_the_media_folder_are_refused_only_where_asked(folder: Path, tmp_path: Path) -> None:
    outside = tiny.write_image(tmp_path / "secret.png", 60, 60)
    link = tmp_path / "media"
    link.mkdir()
    (link / "way.png").symlink_to(outside)
    tiny.write_image(link / "in.png", 60, 60)
    refused = [str(outside), "../secret.png", "way.png", f"file://{outside}"]
    allowed = ["in.png", "./in.png", str(link / "in.png"), "../media/in.png"]
    elements = [tiny.record([name], "<image>?", "yes") for name in refused + allowed]
    report, _ = examine(folder, elements, None, media_dir=str(link), confine=True)
    assert [(problem.code, problem.origin.line) for problem in report.problems] == [
        ("image-outside", line) for line in (1, 2, 3, 4)
    ]
    assert examine(folder, elements, None, media_dir=str(link))[0].problems == []


def test_an_image_used_often_is_measured_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []
    real = measure.measure
    monkeypatch.setattr(measure, "measure", lambda location: measured.append(location) or real(location))
    elements = [tiny.record(["a.png", "text.png"], "<image><image>?", "yes")] * 5
    assert len(examine(folder, elements, None)[0].problems) == 5
    assert sorted(Path(location).name for location in measured) == ["a.png", "text.png"]


def encoded_image(form: str) -> bytes:
    buffer = io.BytesIO()
    tiny.image(40, 48).save(buffer, form)
    return buffer.getvalue()


IMAGES = {form: encoded_image(form) for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")}


@settings(max_examples=200, deadline=None)
@given(data=st.data(), form=st.sampled_from(sorted(IMAGES)))
def test_no_damage_of_a_file_crashes_measuring_or_decoding(
    folder: Path, encoder: Encoder, data: st.DataObject, form: str
) -> None:
    content = bytearray(IMAGES[form])
    for _ in range(data.draw(st.integers(0, 6))):
        # Headers are where parsers break: half of the changes go there.
        place = data.draw(st.integers(0, 63) | st.integers(0, len(content) - 1))
        content[place] = data.draw(st.sampled_from([0, 255]) | st.integers(0, 255))
    path = folder / "damaged"
    path.write_bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))])
    try:
        measured = measure.measure(str(path))
        size = (measured.height, measured.width)
        resized = encoder.geometry.resized(*size)
        patches = load_patches(str(path), size, resized, encoder.geometry)
    except measure.ImageError as error:
        code: str | None = error.code
    else:
        code = None
        assert len(patches) == resized[0] * resized[1] // 14**2
    assert code is None or code in CODES


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("form", sorted(IMAGES))
def test_a_truncated_file_is_found_when_it_is_measured(tmp_path: Path, form: str, share: float) -> None:
    path = tmp_path / "cut"
    path.write_bytes(IMAGES[form][: int(len(IMAGES[form]) * share)])
    with pytest.raises(measure.ImageError, match="cut") as caught:
        measure.measure(str(path))
    assert caught.value.code == "image-unreadable"


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (20_000, 10_000)).save(path)

    def no_decoding(*_: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", no_decoding)
    with pytest.raises(measure.ImageError, match="200000000") as caught:
        measure.measure(str(path))
    assert caught.value.code == "image-unreadable"


def test_problems_of_all_images_of_a_record_are_reported(folder: Path) -> None:
    element = tiny.record(["gone.png", "a.png", "text.png", "thin.png"], "<image>" * 4, "yes")
    report, _ = examine(folder, [element], None)
    assert [(problem.code, problem.image) for problem in report.problems] == [
        ("image-missing", 1),
        ("image-unreadable", 3),
        ("image-extreme", 4),
    ]


def test_a_problem_says_where_in_text_and_as_data() -> None:
    from triptych.errors import Origin

    problem = Problem("empty-answer", Origin("d.json", 12), "no text", turn=2)
    assert str(problem) == "d.json:12, turn 2: empty-answer: no text"
    assert json.loads(json.dumps(problem.to_dict())) == {
        "code": "empty-answer",
        "origin": "d.json:12",
        "path": "d.json",
        "line": 12,
        "message": "no text",
        "turn": 2,
    }
