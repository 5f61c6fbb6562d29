"""Forms next to those of the page on data formats: read as they are meant, or refused with what to write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_shapes import AB, A, Q, problems, read, said, turns

from triptych.corpus.loading import load_or_build
from triptych.errors import ConfigError
from triptych.images.near_names import near, tell_tale
from triptych.sources.records import Source

PLAIN = turns("Which?", "This.")


@pytest.mark.parametrize(
    "mark",
    [
        *("<|image|>", "<image/>", "<image />", "<image >", "< image >", "<images>", "<Image>"),
        "<image_path>a.png</image_path>",
        "<image src=a.png>",
    ],
)
def test_a_mark_where_there_is_no_image_is_refused_and_may_be_text(mark: str) -> None:
    (problem,) = problems(turns(f"See {mark} here", "yes"))
    assert (problem.code, problem.turn) == ("bad-shape", 1)
    assert "there is no image; write <image>" in problem.message
    assert said(read(turns([{"type": "text", "text": f"See {mark} here"}], "yes")))[0][1] == f"See {mark} here"
    assert said(read(turns("How?", f"Write {mark}.")))[1][1] == f"Write {mark}.", "an answer may speak of it"
    beside = said(read(turns(f"<image> and {mark}", "yes", images=["a.png"])))
    assert beside[0][1] == f"[a.png] and {mark}", "beside images it is text"


def test_a_name_between_tags_is_no_text() -> None:
    for text, extra in (("<image>a.png</image> x", {}), ("<image>imgs/a.jpg</image>?", {"images": ["a.png"]})):
        (problem,) = problems(turns(text, "y", **extra))
        assert "write <image> in its place and list the file under `images`" in problem.message
    assert said(read(turns("<image>not a file</image>", "y", images=["a.png"])))[0][1] == "[a.png]not a file</image>"


def test_marks_auto_asks_where_another_mark_stands_as_often_as_there_are_images() -> None:
    data = turns("[IMG] or [IMG]?", "y", images=AB)
    (problem,) = problems(data, marks="auto")
    assert 'write `mark: "[IMG]"` in the source' in problem.message
    assert said(read(data, mark="[IMG]"))[0][1] == "[a.png] or [b.png]?"
    assert said(read(data, marks="first"))[0][1] == "[a.png][b.png][IMG] or [IMG]?"
    assert len(read(turns("One [IMG]?", "y", images=AB), marks="auto").images) == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_for_training", False),
        ("train_on_turn", False),
        ("useInTraining", False),
        ("is_train", "false"),
        ("include_in_loss", False),
        ("exclude_from_training", True),
        ("no_supervision", True),
        ("masking", True),
        ("keep", False),
        ("is_masked", "True"),
    ],
)
def test_a_key_that_may_leave_a_turn_or_record_out_is_refused(key: str, value: Any) -> None:
    for place in (0, 1):
        data = json.loads(json.dumps(PLAIN))
        (data if place else data["messages"][1])[key] = value
        assert f"`{key}: {str(value).lower()}` may leave it out" in problems(data)[0].message
        (data if place else data["messages"][1])[key] = value in (False, "false")
        assert read(data).turns[1].supervised, "and the other truth changes nothing"


@pytest.mark.parametrize("note", [{"training_step": 0}, {"loss_id": 0}, {"split": "train"}, {"has_mask": True}])
def test_notes_of_training_are_notes(note: dict[str, Any]) -> None:
    assert said(read({**PLAIN, **note})) == said(read(PLAIN))


@pytest.mark.parametrize("key", ["thought", "cot", "chain_of_thought", "reasoning_details", "think"])
def test_thinking_under_any_of_its_names_is_not_lost(key: str) -> None:
    data = json.loads(json.dumps(PLAIN))
    data["messages"][1][key] = "Since it is red."
    assert "<think>" in problems(data)[0].message


def test_a_part_that_asks_for_a_piece_of_its_image_is_refused() -> None:
    part = {"type": "image", "image": "a.png", "crop": [0, 0, 9, 9], "metadata": {"width": 20}}
    assert "`crop` would make it another image" in problems(turns([part], "y"))[0].message
    assert len(read(turns([{**part, "crop": None, "flip": False}], "y")).images) == 1
    assert len(read(turns([part], "y"), ignore=["crop"]).images) == 1


PARTS = [
    {"type": "text", "text": "left <image>", "image": None},
    {"type": "image", "image": "a.png", "text": None},
    {"type": "text", "text": "?"},
]


@pytest.mark.parametrize("write", [json.dumps, str])
def test_parts_in_one_text_are_parts(write: Any) -> None:
    told = said(read(turns(write(PARTS), write([{"type": "text", "text": "yes"}]))))
    assert told == [("user", "left <image>[a.png]?"), ("assistant", "yes")]


@pytest.mark.parametrize(
    "text",
    [
        '[{"type": "image", "bbox": [1, 2]}]',
        '[{"type": "text", "text": "x", "bbox": [1, 2, 3, 4]}]',
        '[{"label": "x"}]',
        '[{"type": "text"',
        "[]",
        '["type"]',
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_other_json_is_what_is_said(text: str, place: int) -> None:
    contents = ["Which?", "This."]
    contents[place] = text
    assert [told for _, told in said(read(turns(*contents)))] == contents


def test_an_answer_of_json_with_images_is_what_is_said() -> None:
    answer = '[{"type": "image", "path": "a.png"}]'
    assert said(read(turns("Which files?", answer)))[1][1] == answer


@pytest.mark.parametrize("nothing", [None, {"role": None, "content": None}, {"role": "", "content": ""}, {}])
def test_turns_that_hold_nothing_are_not_there(nothing: Any) -> None:
    data = turns(Q, A, images=AB)
    padded = {**data, "messages": [*data["messages"], nothing, nothing]}
    assert said(read(padded)) == said(read(data))
    pairs = {"texts": [{"user": "Which?", "assistant": "This."}, None, {"user": None, "assistant": None}]}
    assert said(read(pairs)) == said(read(PLAIN))


def test_small_mistakes_come_with_what_to_write() -> None:
    assert "list each image under `images`" in problems(turns("<image>?", "y"))[0].message
    assert "several names in one text" in problems(turns("<image><image>?", "y", images="a.png,b.png"))[0].message
    assert '"role": "user"' in problems({"messages": [{"user": "x"}, {"assistant": "y"}]})[0].message.replace("'", '"')
    assert "it is a turn without a record" in problems({"role": "user", "content": "x"})[0].message
    both = {**PLAIN, "conversations": [{"from": "human", "value": "Other?"}, {"from": "gpt", "value": "That."}]}
    assert "`ignore: [conversations]`" in problems(both)[0].message
    assert said(read(both, ignore=["conversations"])) == said(read(PLAIN))


HELD: dict[str, tuple[bytes, str]] = {
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "git lfs pull"),
    "gzip": (b"\x1f\x8b\x08\0\0\0", "let its name end in .gz"),
    "parquet": (b"PAR1\x15\x04\x15", "let its name end in .parquet"),
    "zip": (b"PK\x03\x04\x14\0\0\0", "ZIP archive"),
    "html": (b"\n<!DOCTYPE html><html>404</html>", "download the data again"),
    "pickle": (b"\x80\x04\x95\x10\0\0\0", "a pickle of Python"),
    "zeros": (bytes(512), "nothing but zero bytes"),
}


@pytest.mark.parametrize("kind", HELD)
def test_a_file_that_holds_something_else_is_named(tmp_path: Path, kind: str) -> None:
    content, remedy = HELD[kind]
    for name in ("a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow", "a.tar"):
        path = tmp_path / name
        path.write_bytes(content)
        if name == "a.parquet" and kind == "parquet":
            remedy = "or damaged"
        if (name, kind) == ("a.tar", "zeros"):
            continue  # so an empty tar file is written
        try:
            _, report = load_or_build([Source(str(path))], None, tmp_path / "cache")
        except ConfigError as error:
            messages = [str(error)]
        else:
            messages = [problem.message for problem in report.problems]
        assert len(messages) == 1, messages
        assert remedy in messages[0], (name, messages)
        remedy = HELD[kind][1]


def test_a_comma_that_is_missing_in_an_array_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(f"[{json.dumps(PLAIN)}\n{json.dumps(PLAIN)}]")
    _, report = load_or_build([Source(str(path))], None, tmp_path / "cache")
    assert "a comma is missing after" in report.problems[0].message


@pytest.mark.parametrize(
    ("name", "difference"),
    [
        ("'a.png'", "quotation marks"),
        ("“a.png”", "quotation marks"),
        ("\ta.png", "white space"),
        ("a.png\u200b", "nobody sees"),
        ("\ufeffa.png", "nobody sees"),
        ("a.png/", "ends with /"),
    ],
)
def test_what_is_around_a_name_is_said(tmp_path: Path, name: str, difference: str) -> None:
    (tmp_path / "a.png").touch()
    found = near(f"{tmp_path}/{name}")
    assert found is not None
    assert found.path == str(tmp_path / "a.png")
    assert difference in found.difference


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("base64,iVBORw0KGgo", "needs data:image/png;base64,"),
        ("image/png;base64,iVBORw0KGgo", "needs data:image/png;base64,"),
        ("b'\\x89PNG\\r\\n'", "way to print bytes"),
        ('b"\\xff\\xd8\\xff"', "way to print bytes"),
        ("a.png\nb.png", "several names"),
    ],
)
def test_content_in_place_of_a_name_is_told(name: str, words: str) -> None:
    assert words in str(tell_tale(f"/data/{name}"))


def test_a_table_pads_its_lists_of_turns(tmp_path: Path) -> None:
    padded = [[{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "This."}, None, None]]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"messages": pa.array(padded), "images": pa.array(["nan"])}), path)
    corpus, report = load_or_build([Source(str(path))], None, tmp_path / "cache")
    assert (len(corpus), report.problems) == (1, [])
