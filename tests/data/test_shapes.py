"""Every known record shape is read, and says what the plainest shape says."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from triptych.errors import ConfigError, Origin, Problem, SampleError
from triptych.sources.records import ImageRef, Record, Source
from triptych.text.conversation import Conversation, parse

ORIGIN = Origin("data.json", 7)
B64 = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(60)).decode()


def read(data: dict[str, Any], **source: Any) -> Conversation:
    return parse(Record(data, ORIGIN), Source("data.json", **source))


def problems(data: dict[str, Any], **source: Any) -> list[Problem]:
    with pytest.raises(SampleError) as caught:
        read(data, **source)
    assert all(20 < len(problem.message) < 900 for problem in caught.value.problems)
    return list(caught.value.problems)


def said(conversation: Conversation) -> list[tuple[str, str]]:
    """(role, text with the names of images in brackets) of each turn."""
    names = [ref.source for ref in conversation.images]
    return [
        (turn.role, "".join(part if isinstance(part, str) else f"[{names[part]}]" for part in turn.parts))
        for turn in conversation.turns
    ]


def turns(*contents: Any, **extra: Any) -> dict[str, Any]:
    """User and assistant turns in turn."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": c} for n, c in enumerate(contents)], **extra}


TWO = [("user", "[a.png]left [b.png]right?"), ("assistant", "The first.")]
Q, A, AB = "<image>left <image>right?", "The first.", ["a.png", "b.png"]
USER, MODEL = {"role": "user", "content": Q}, {"role": "assistant", "content": A}

SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "messages": (turns(Q, A, images=AB), {}),
    "conversations": (tiny.record(AB, Q, A), {}),
    "conversation": ({"conversation": [USER, MODEL], "images": AB}, {}),
    "a list written as a string": ({"messages": json.dumps([USER, MODEL]), "images": json.dumps(AB)}, {}),
    "a list written as Python does": ({"messages": str([USER, MODEL]), "images": str(AB)}, {}),
    "roles of other case": (
        {"messages": [{"role": "User", "content": Q}, {"role": "model", "content": A}], "images": AB},
        {},
    ),
    "prompt and completion, text": ({"prompt": Q, "completion": A, "images": AB}, {}),
    "prompt and completion, turns": ({"prompt": [USER], "completion": [MODEL], "images": AB}, {}),
    "prompt and completion, mixed": ({"prompt": [USER], "completion": A, "images": AB}, {}),
    "texts": ({"texts": [{"user": Q, "assistant": A, "source": "x"}], "images": AB}, {}),
    "texts as conversations": ({"conversations": [{"user": Q, "assistant": A}], "images": AB}, {}),
    "query and response": ({"query": Q, "response": A, "history": [], "images": AB}, {}),
    "question and answer": ({"question": Q, "answer": A, "images": AB}, {}),
    "one answer in a list": ({"question": Q, "answers": [A], "images": AB}, {"columns": {"answer": "answers"}}),
    "alpaca": ({"instruction": Q, "input": "", "output": A, "images": AB}, {}),
    "pairs under other keys": ({"q": Q, "a": A, "images": AB}, {"columns": {"question": "q", "answer": "a"}}),
    "images as objects": (turns(Q, A, images=[{"path": "a.png"}, {"bytes": None, "path": "b.png"}]), {}),
    "images as objects of other keys": (turns(Q, A, images=[{"url": "a.png"}, {"image": {"path": "b.png"}}]), {}),
    "a list too deep": (turns(Q, A, images=[AB]), {}),
    "padded with nulls": (turns(Q, A, images=[*AB, None, {}, "", {"bytes": None, "path": None}]), {}),
    "empty images beside image": (turns(Q, A, images=[], image=AB), {}),
    "equal images and image": (turns(Q, A, images=AB, image=AB), {}),
    "empty conversations beside messages": (turns(Q, A, images=AB, conversations=[]), {}),
    "two columns": (turns(Q, A, left="a.png", right="b.png"), {"columns": {"images": ["left", "right"]}}),
    "a pattern": (turns(Q, A, image_2="b.png", image_10=None, image_1="a.png"), {"columns": {"images": "image_{n}"}}),
    "another mark": (turns(Q.replace("<image>", "<ImageHere>"), A, images=AB), {"mark": "<ImageHere>"}),
    "numbered marks": (turns("<image_1>left <image_2>right?", A, images=AB), {"mark": "<image_{n}>"}),
    "numbered marks from 0": (turns("<image 0>left <image 1>right?", A, images=AB), {"mark": "<image {n}>"}),
    "numbered marks in another order": (
        turns("<image2>left <image1>right?", A, images=AB[::-1]),
        {"mark": "<image{n}>"},
    ),
    "img tags": (turns("<img>a.png</img>left <img>b.png</img>right?", A), {}),
    "img tags beside marks": (turns("<image>left <img>b.png</img>right?", A, images="a.png"), {}),
    "images of the turn": ({"messages": [{**USER, "images": AB}, MODEL]}, {}),
    "images of the turn under another key": ({"messages": [{**USER, "pics": AB}, MODEL]}, {"tags": {"images": "pics"}}),
    "null keys of a union": (
        {"messages": [{"from": None, "value": None, **USER}, {"from": None, "value": None, **MODEL}], "images": AB},
        {},
    ),
}

PARTS: dict[str, list[Any]] = {
    "image": [{"type": "image", "image": "a.png"}, {"type": "image", "image": "b.png"}],
    "path": [{"type": "image", "path": "a.png"}, {"type": "image", "file_path": "b.png"}],
    "url": [{"type": "image", "url": "a.png"}, {"type": "image_url", "url": "b.png"}],
    "image_url": [{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "image_url", "image_url": "b.png"}],
    "responses": [{"type": "input_image", "image_url": "a.png"}, {"type": "input_image", "image_url": "b.png"}],
    "value": [{"type": "image_url", "value": "a.png"}, {"type": "image", "value": "b.png"}],
    "source": [{"type": "image", "source": {"type": "url", "url": "a.png"}}, {"type": "image", "source": "b.png"}],
    "no type": [{"image": "a.png"}, {"image_url": {"url": "b.png"}}],
    "nulls of a table": [
        {"type": "image", "text": None, "image": "a.png", "index": None},
        {"type": "image", "text": None, "image": {"bytes": None, "path": "b.png"}, "index": None},
    ],
    "references of a table": [{"type": "image", "image": ImageRef("a.png", "x")}, {"image": ImageRef("b.png", "y")}],
    "notes": [
        {"type": "image", "image": "a.png", "metadata": {"width": 4, "height": 5}, "uuid": "1"},
        {"type": "image_url", "image_url": {"url": "b.png", "detail": "auto"}},
    ],
}
TEXTS: dict[str, Any] = {
    "text": [{"type": "text", "text": "left "}, {"type": "text", "text": "right?"}],
    "value": [{"type": "text", "value": "left "}, {"type": "input_text", "text": "right?"}],
    "no type": [{"text": "left "}, {"text": "right?", "image": None}],
}


@pytest.mark.parametrize("name", SAME)
def test_every_shape_says_the_same(name: str) -> None:
    data, source = SAME[name]
    conversation = read(data, **source)
    assert said(conversation) == TWO
    assert [turn.supervised for turn in conversation.turns] == [False, True]


@pytest.mark.parametrize("texts", TEXTS)
@pytest.mark.parametrize("images", PARTS)
def test_every_form_of_a_part_says_the_same(images: str, texts: str) -> None:
    (one, two), (left, right) = PARTS[images], TEXTS[texts]
    answer = [{"type": "output_text", "text": "The "}, {"text": "first."}]
    assert said(read(turns([one, left, two, right], answer))) == TWO


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "base64": B64},
        {"type": "image", "image": {"bytes": B64, "path": None}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": B64}},
        {"type": "image", "image": f"data:image/png;base64,{B64}"},
        {"image_base64": f"{B64[:40]}\n{B64[40:]}"},
    ],
)
def test_an_image_in_base64_is_inline_data(part: dict[str, Any]) -> None:
    (image,) = read(turns([part, {"type": "text", "text": "?"}], "yes")).images
    assert (image.location or image.source) == f"data:image/png;base64,{B64}"
    (listed,) = read(turns("<image>?", "yes", images=[{"bytes": B64, "path": "a.png"}])).images
    assert listed == ImageRef("a.png", f"data:image/png;base64,{B64}")


def test_an_index_takes_that_image() -> None:
    def indexed(*numbers: int) -> list[Any]:
        return [*({"type": "image", "index": number} for number in numbers), {"type": "text", "text": "?"}]

    assert said(read(turns(indexed(1, 0), "y", images=AB)))[0] == ("user", "[b.png][a.png]?")
    assert said(read(turns(indexed(0, 0), "y", images=["a.png"])))[0] == ("user", "[a.png][a.png]?")
    for numbers, images in (((0, 2), AB), ((0,), AB), ((0, 1), ["a.png"])):
        assert [problem.code for problem in problems(turns(indexed(*numbers), "y", images=images))] == ["marker-count"]
    mixed = [{"type": "image"}, {"type": "image", "index": 0}]
    assert [problem.code for problem in problems(turns(mixed, "y", images=AB))] == ["marker-count"]


@pytest.mark.parametrize("marks", ["first", "auto"])
def test_images_without_marks_come_first_where_the_source_says_so(marks: str) -> None:
    listed = read({"system": "s", **turns("Which?", "This.", "And?", "That.", images=AB)}, marks=marks)
    assert said(listed)[:2] == [("system", "s"), ("user", "[a.png][b.png]Which?")]
    own = turns("Which?", "This.", "And?", "That.")
    own["messages"][0]["images"], own["messages"][2]["image"] = ["a.png"], "b.png"
    assert said(read(own, marks=marks))[::2] == [("user", "[a.png]Which?"), ("user", "[b.png]And?")]
    assert [problem.code for problem in problems(own)] == ["marker-count"] * 2
    (problem,) = problems(turns("Which?", "This.", images=AB))
    assert "marks: auto" in problem.message


def test_auto_leaves_marks_where_they_are_and_first_refuses_them() -> None:
    assert said(read(turns(Q, A, images=AB), marks="auto")) == TWO
    assert "marks: auto" in problems(turns(Q, A, images=AB), marks="first")[0].message
    assert [problem.code for problem in problems(turns("<image>", A, images=AB), marks="auto")] == ["marker-count"]


def test_earlier_turns_come_from_the_history() -> None:
    data = {"query": Q, "response": A, "history": [["Hi", "Hello"]], "system": "S", "images": AB}
    assert said(read(data)) == [("system", "S"), ("user", "Hi"), ("assistant", "Hello"), *TWO]
    data["history"] = json.dumps([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}])
    assert said(read(data))[1:3] == [("user", "Hi"), ("assistant", "Hello")]
    assert problems({**data, "history": ["Hi"]})[0].code == "bad-shape"


def test_the_input_of_an_instruction_follows_it() -> None:
    assert said(read({"instruction": "Name it.", "input": "<image>", "output": "A cat.", "images": "a.png"})) == [
        ("user", "Name it.\n[a.png]"),
        ("assistant", "A cat."),
    ]
    assert said(read({"input": "Name it.", "output": "A cat."}))[0] == ("user", "Name it.")


def test_a_folder_in_the_record_comes_before_its_names() -> None:
    data = turns(Q, A, images=["a.png", "/x/b.png"], data_path="set/one")
    assert [ref.source for ref in read(data).images] == ["set/one/a.png", "/x/b.png"]


CHOICE = {"question": "How many in <image> and <image>?", "options": ["One", "Two", "<image>"], "answer": "B"}


@pytest.mark.parametrize(
    ("change", "choice", "text", "answer"),
    [
        ({}, {}, "A. One\nB. Two\nC. [c]", "B"),
        ({"answer": "Two"}, {}, "A. One\nB. Two\nC. [c]", "B"),
        ({"answer": "(C)"}, {"letters": "(A) "}, "(A) One\n(B) Two\n(C) [c]", "C"),
        (
            {"answer": 0},
            {"instruction": "Answer with the letter."},
            "A. One\nB. Two\nC. [c]\nAnswer with the letter.",
            "A",
        ),
        ({"options": "['One', 'Two', '<image>']"}, {}, "A. One\nB. Two\nC. [c]", "B"),
        ({"options": {"X": "One", "Y": "<image>"}, "answer": "Y"}, {}, "X. One\nY. [c]", "Y"),
        ({"options": None, "A": "One", "B": "<image>", "C": None}, {"options": ["A", "B", "C"]}, "A. One\nB. [c]", "B"),
        ({"question": None, "q": CHOICE["question"]}, {"question": "q"}, "A. One\nB. Two\nC. [c]", "B"),
    ],
)
def test_multiple_choice_is_a_question_with_its_options(
    change: dict[str, Any], choice: dict[str, Any], text: str, answer: str
) -> None:
    data = {**CHOICE, "image_list": ["a", "b", "c"], **change}
    conversation = read(data, choice=choice, columns={"images": "image_list"})
    assert said(conversation) == [("user", f"How many in [a] and [b]?\n{text}"), ("assistant", answer)]


@pytest.mark.parametrize(
    "change",
    [
        *({"answer": answer} for answer in ("D", None, 3, True)),
        *({"options": options} for options in (["One"], "One", "[]", [1, None], None)),
        *({"question": question} for question in ("", ["x"])),
    ],
)
def test_a_choice_that_is_none_is_a_problem(change: dict[str, Any]) -> None:
    data = {**CHOICE, "images": ["a", "b", "c"], **change}
    assert problems(data, choice={})[0].code == "bad-shape"


def test_options_without_a_choice_say_what_to_write() -> None:
    for key in ("options", "choices", "choice_list"):
        (problem,) = problems({"question": "Same?", key: ["Yes", "No"], "answer": "A"})
        assert f"choice: {{question: question, options: {key}}}" in problem.message


def test_neighbours_of_one_role_are_refused_merged_or_kept() -> None:
    data = {
        "messages": [USER, {"role": "user", "content": "Well?"}, MODEL, {**MODEL, "content": "Sure."}],
        "images": AB,
    }
    (problem,) = problems(data)
    assert (problem.code, problem.turn) == ("role-order", 2)
    assert "roles: merge" in problem.message
    merged = read(data, roles="merge")
    assert said(merged) == [("user", f"{TWO[0][1]}\nWell?"), ("assistant", f"{A}\nSure.")]
    assert all(
        not (isinstance(a, str) and isinstance(b, str))
        for t in merged.turns
        for a, b in zip(t.parts, t.parts[1:], strict=False)
    )
    assert [turn.role for turn in read(data, roles="keep").turns] == ["user", "user", "assistant", "assistant"]
    data["messages"][2] = {**MODEL, "loss": False}
    assert [problem.code for problem in problems(data, roles="merge")] == ["role-order"]


def test_what_chat_templates_render_is_taken() -> None:
    answer_only = {"messages": [{"role": "assistant", "content": "<image> is a puppy."}], "image": "a.png"}
    assert said(read(answer_only)) == [("assistant", "[a.png] is a puppy.")]
    late = {"messages": [USER, MODEL, {"role": "system", "content": "Be strict."}, {**USER, "content": "x"}, MODEL]}
    assert [turn.role for turn in read({**late, "images": AB}).turns][2] == "system"


@pytest.mark.parametrize(
    ("key", "value", "learned"),
    [
        (key, value, bool(value))
        for key in ("loss", "train", "weight", "loss_mask", "loss_scale")
        for value in (True, False, 1, 0)
    ]
    + [("weight", 1.0, True), ("weight", 0.0, False), ("train", None, True)],
)
def test_a_turn_says_whether_it_is_learned(key: str, value: Any, learned: bool) -> None:
    data = turns("One?", "WRONG", "Two?", "Right")
    data["messages"][1][key] = value
    assert [turn.supervised for turn in read(data).turns] == [False, learned, False, True]


@pytest.mark.parametrize(
    ("task", "expected"), [(3, "3"), ("t", "t"), (1.5, "1.5"), ({"a": 1}, None), ([], None), ("", None), (True, None)]
)
def test_a_task_is_a_string_or_a_number(task: Any, expected: str | None) -> None:
    assert read(turns("x", "y", task=task)).task == expected
    assert read(turns("x", "y", kind=task, task={"other": 1}), columns={"task": "kind"}).task == expected


@pytest.mark.parametrize(
    "data",
    [
        turns(Q, A, images=AB, image=["a.png", "c.png"]),
        {**turns(Q, A, images=AB), "conversations": [USER, {**MODEL, "content": "The second."}]},
        {"question": "a", "answer": "b", "query": "c", "response": "d"},
        {"messages": [{"from": "human", "role": "assistant", "value": "x"}, MODEL]},
        {"messages": [{"role": "user", "value": "x", "content": "y"}, MODEL]},
        {"messages": [{**USER, "images": AB, "image": "c.png"}, MODEL]},
        turns([{"type": "image", "image": "a.png", "url": "b.png"}], "y"),
    ],
)
def test_two_filled_keys_that_differ_are_refused(data: dict[str, Any]) -> None:
    assert {problem.code for problem in problems(data)} == {"bad-shape"}


def test_equal_ones_are_taken() -> None:
    data = {"messages": [{"from": "human", "value": Q, **USER}, MODEL], "conversations": None, "images": AB}
    assert said(read(data)) == TWO
    assert said(read({**data, "question": "x", "answer": "y"})) == TWO


@pytest.mark.parametrize("empty", [None, "", [], {}, "[]", [None], [[]], "null", {"a": None}, [{"bytes": None}], " "])
def test_what_holds_nothing_is_absent(empty: Any) -> None:
    extra = dict.fromkeys(("images", "image", "system", "conversations", "videos", "tools", "objects", "chosen"), empty)
    assert said(read({**turns("x", "y"), **extra})) == [("user", "x"), ("assistant", "y")]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"dialog": [USER, MODEL]}, "columns: {messages: dialog}"),
        ({"question": "Q?", "answers": ["a", "b"]}, "answer: answers"),
        ({"data": [{"question": "Q?"}], "version": 1}, "save that list"),
        ({"texts": [None, "text", None], "images": ["a.png", None, "b.png"]}, "between images"),
        ({"prompt": "x", "completion": ""}, "no answer"),
        ({"question": "x", "answer": True}, "write the words"),
        ({"question": "x", "answer": ["a", "b"]}, "list of 2"),
        ({"messages": [{"speaker": "U", "text": "hi"}]}, "tags: {role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "the answer that called it"),
        (turns([{"kind": "x", "caption": "y"}], "y"), "`kind`, `caption`"),
        (turns([{"type": "video", "video": "a.mp4"}], "y"), "not supported"),
        (turns("x", "y", images=[7]), "this is a number"),
        (turns("x", "y", images={"id": "1", "caption": "z"}), "`caption`, `id`"),
    ],
)
def test_what_is_no_dialogue_is_said_with_a_remedy(data: dict[str, Any], words: str) -> None:
    assert any(words in problem.message for problem in problems(data)), problems(data)


@pytest.mark.parametrize(
    ("setting", "near"),
    [
        ({"columns": {"message": "dialog"}}, "messages"),
        ({"columns": {"imges": "x"}}, "images"),
        ({"tags": {"contents": "text"}}, "content"),
        ({"choice": {"option": "x"}}, "options"),
        ({"columns": {"messages": ["a", "b"]}}, "only `images`"),
        ({"columns": {"task": ""}}, "names no key"),
        ({"mark": ""}, "empty"),
    ],
)
def test_unknown_names_of_a_source_are_errors_with_the_nearest(setting: dict[str, Any], near: str) -> None:
    with pytest.raises(ConfigError, match=near):
        Source("data.json", **setting)


def test_a_saved_data_set_may_hold_images_inside_its_messages(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from triptych.images import measure
    from triptych.sources.readers import read_records

    contents = []
    for number in range(4):
        buffer = io.BytesIO()
        tiny.image(30 + number, 40).save(buffer, "PNG")
        contents.append(buffer.getvalue())

    def cell(number: int) -> dict[str, Any]:
        return {"bytes": contents[number], "path": f"{number}.png" if number % 2 else None}

    def rows(wrap: Any) -> list[Any]:
        return [
            [{"role": "user", "content": [wrap(0), {"type": "text", "text": "a"}, wrap(1)]}, MODEL_PARTS],
            [{"role": "user", "content": [{"type": "text", "text": "b"}]}, MODEL_PARTS],
            [{"role": "user", "content": [wrap(2), wrap(3)]}, MODEL_PARTS],
        ]

    MODEL_PARTS = {"role": "assistant", "content": [{"type": "text", "text": "y"}]}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    view = pa.struct([("bytes", pa.binary_view()), ("path", pa.string())])
    forms = {
        "struct": (image, lambda n: {"type": "image", "image": cell(n)}),
        "list of lists": (pa.list_(pa.list_(image)), lambda n: {"type": "image", "image": [[cell(n)]]}),
        "binary": (pa.binary(), lambda n: {"type": "image", "image": contents[n]}),
        "large": (pa.large_list(pa.large_binary()), lambda n: {"type": "image", "image": [contents[n]]}),
        "view": (view, lambda n: {"type": "image", "image": cell(n)}),
        "fixed": (pa.list_(image, 1), lambda n: {"type": "image", "image": [cell(n)]}),
    }
    for name, (kind, wrap) in forms.items():
        part = pa.struct([("type", pa.string()), ("text", pa.string()), ("image", kind)])
        turn = pa.struct([("role", pa.string()), ("content", pa.list_(part))])
        table = pa.table({"messages": pa.array(rows(wrap), pa.list_(turn)), "n": [1, 2, 3]})
        arrow = tmp_path / f"{name}.arrow"
        with pa.OSFile(str(arrow), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
        files = [arrow]
        if name != "view":
            pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=2)
            files.append(tmp_path / f"{name}.parquet")
        for file in files:
            found = []
            for record in read_records(str(file)):
                assert isinstance(record, Record)
                for ref in parse(record, Source(str(file))).images:
                    assert ref.location is not None
                    with measure.open_bytes(ref.location) as opened:
                        found.append(opened.read())
            assert found == contents, (name, file)
