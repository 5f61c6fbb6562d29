"""Record shapes: all of them say the same thing, and what is wrong has a code and a place."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from triptych.errors import Origin, Problem, SampleError
from triptych.sources.records import Record, Source
from triptych.text.conversation import Conversation, parse

ORIGIN = Origin("data.json", 7)


def read(data: dict[str, Any], **naming: Any) -> Conversation:
    return parse(Record(data, ORIGIN), Source("data.json", **naming))


def problems(data: dict[str, Any], **naming: Any) -> list[Problem]:
    with pytest.raises(SampleError) as caught:
        read(data, **naming)
    assert all(problem.origin == ORIGIN for problem in caught.value.problems)
    return list(caught.value.problems)


def openai(*contents: Any, **extra: Any) -> dict[str, Any]:
    """User and assistant turns in turn, holding ``contents``."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": c} for n, c in enumerate(contents)], **extra}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def image(name: str) -> dict[str, str]:
    return {"type": "image", "image": name}


SAME = {
    "ShareGPT": tiny.record(["a.jpg", "b.jpg"], "<image>left <image>right?", "The first."),
    "OpenAI with marks": openai("<image>left <image>right?", "The first.", images=["a.jpg", "b.jpg"]),
    "OpenAI with parts": openai(
        [image("a.jpg"), text("left "), {"type": "image_url", "image_url": {"url": "b.jpg"}}, text("right?")],
        [text("The "), text("first.")],
    ),
    "OpenAI with empty places": openai(
        [{"type": "image"}, text("left "), {"type": "image"}, text("right?")],
        "The first.",
        images=["a.jpg", "b.jpg"],
    ),
    "a bare address": openai(
        [{"type": "image_url", "image_url": "a.jpg"}, text("left "), image("b.jpg"), text("right?")],
        "The first.",
    ),
    "LLaVA": {
        **tiny.record([], "<image>left <image>right?", "The first."),
        "images": None,
        "image": ["a.jpg", "b.jpg"],
    },
}


@pytest.mark.parametrize("name", SAME)
def test_every_shape_gives_the_same_conversation(name: str) -> None:
    conversation = read(SAME[name])
    assert [ref.source for ref in conversation.images] == ["a.jpg", "b.jpg"]
    assert [(turn.role, turn.parts, turn.supervised) for turn in conversation.turns] == [
        ("user", (0, "left ", 1, "right?"), False),
        ("assistant", ("The first.",), True),
    ]


def test_a_single_image_may_be_a_string() -> None:
    data = {"image": "a.jpg", "conversations": tiny.record([], "<image>?", "yes")["conversations"]}
    assert [ref.source for ref in read(data).images] == ["a.jpg"]


@settings(max_examples=100, deadline=None)
@given(
    questions=st.lists(
        st.lists(st.sampled_from(["<image>", "text ", "\n", "图", "<image", "image>"]), max_size=6),
        min_size=1,
        max_size=4,
    )
)
def test_the_kth_mark_in_reading_order_is_the_kth_image(questions: list[list[str]]) -> None:
    contents = [content for pieces in questions for content in ("".join(pieces), "yes <image>")]
    count = sum(content.count("<image>") for content in contents)
    names = [f"{number}.jpg" for number in range(count)]
    conversation = read(openai(*contents, images=names))
    slots = [part for turn in conversation.turns for part in turn.parts if isinstance(part, int)]
    assert slots == list(range(count))
    assert [ref.source for ref in conversation.images] == names
    for turn, content in zip(conversation.turns, contents, strict=True):
        assert "".join(part if isinstance(part, str) else "<image>" for part in turn.parts) == content


def test_a_mark_inside_a_text_part_is_text() -> None:
    conversation = read(openai([text("what does <image> mean?")], [text("an image: <image>")]))
    assert conversation.images == ()
    assert [turn.parts for turn in conversation.turns] == [("what does <image> mean?",), ("an image: <image>",)]


def test_a_system_prompt_may_stand_beside_the_conversation() -> None:
    beside = read(openai("<image>?", "yes", system="See <image>.", images=["a", "b"]))
    inside = read(
        {
            "messages": [{"role": "system", "content": "See <image>."}, *openai("<image>?", "yes")["messages"]],
            "images": ["a", "b"],
        }
    )
    assert beside.turns == inside.turns
    assert beside.turns[0].parts == ("See ", 0, ".")
    assert read(openai("hi", "yes", system="")).turns[0].role == "user"


def test_only_answers_are_targets_and_loss_false_turns_one_off() -> None:
    data = openai("a", "b", "c", "d", system="s")
    data["messages"][1]["loss"] = False
    data["messages"][0]["loss"] = True
    assert [turn.supervised for turn in read(data).turns] == [False, False, False, False, True]


def test_other_names_of_keys_and_roles_are_mapped() -> None:
    data = {
        "dialog": [{"speaker": "U", "text": "<image>?"}, {"speaker": "A", "text": "yes"}],
        "images": ["a.jpg"],
        "task": "t",
    }
    columns = {"conversations": "dialog", "images": "images"}
    tags = {"role": "speaker", "content": "text", "user": "U", "assistant": "A"}
    conversation = read(data, columns=columns, tags=tags)
    assert [turn.role for turn in conversation.turns] == ["user", "assistant"]
    assert conversation.images[0].source == "a.jpg"
    assert conversation.task == "t"
    assert [problem.code for problem in problems(data)] == ["bad-shape"]


def turns(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "x"} for role in roles]}


@pytest.mark.parametrize(
    ("data", "code", "turn"),
    [
        (turns("user"), "role-order", None),
        (turns("system"), "role-order", None),
        (turns("assistant", "user"), "role-order", None),
        (turns("user", "user", "assistant"), "role-order", 2),
        (turns("user", "assistant", "user"), "role-order", None),
        (turns("user", "assistant", "assistant"), "role-order", 3),
        (turns("system", "system", "user", "assistant"), "role-order", 2),
        ({**turns("system", "user", "assistant"), "system": "s"}, "role-order", 1),
        ({**turns("user", "user", "assistant"), "system": "s"}, "role-order", 2),
        (openai("x", ""), "empty-answer", 2),
        (openai("x", " \n\t"), "empty-answer", 2),
        (openai("x", "a", "y", []), "empty-answer", 4),
        (openai("x", [text("")]), "empty-answer", 2),
        (openai("x", "<image>", images=["a"]), "empty-answer", 2),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "loss": False}]},
            "empty-answer",
            None,
        ),
        (openai("<image>", "y"), "marker-count", None),
        (openai("x", "y", images=["a"]), "marker-count", None),
        (openai("<image><image>", "y", images=["a"]), "marker-count", None),
        (openai("<image>", "y", image=["a", "b"]), "marker-count", None),
        (openai([{"type": "image"}], "y"), "marker-count", None),
        (openai([{"type": "image", "image": "a"}, {"type": "image"}], "y"), "marker-count", None),
        (openai([{"type": "image", "image": "a"}], "y", images=["b"]), "bad-shape", None),
        ({}, "bad-shape", None),
        ({"messages": []}, "bad-shape", None),
        ({"messages": {"role": "user"}}, "bad-shape", None),
        ({"messages": None, "conversations": None}, "bad-shape", None),
        ({"messages": ["hi"]}, "bad-shape", 1),
        (openai(None, "y"), "bad-shape", 1),
        (openai("x", 5), "bad-shape", 2),
        (openai(["x"], "y"), "bad-shape", 1),
        (openai([{"type": "video", "video": "v"}], "y"), "bad-shape", 1),
        (openai([{"type": ["text"], "text": "x"}], "y"), "bad-shape", 1),
        (openai([{"type": "image", "image": ""}], "y"), "marker-count", None),
        (openai([{"type": "image_url", "image_url": {}}], "y"), "marker-count", None),
        ({"messages": [{"role": "tool", "content": "x"}, *openai("x", "y")["messages"]]}, "role-order", 1),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "bad-shape", 1),
        ({"messages": [{"content": "x"}]}, "bad-shape", 1),
        (openai("x", "y", images=["a", "b"], videos=["v"]), "bad-shape", None),
        (openai("<image>", "y", images=[None]), "marker-count", None),
        (openai("<image>", "y", images=[""]), "marker-count", None),
        (openai("<image>", "y", images={"a": 1}), "bad-shape", None),
        (openai("x", "y", system=["s"]), "bad-shape", None),
    ],
)
def test_a_defect_has_its_code_and_its_turn(data: dict[str, Any], code: str, turn: int | None) -> None:
    (problem,) = problems(data)
    assert (problem.code, problem.turn) == (code, turn)
    assert 20 < len(problem.message) < 300


def test_all_defects_of_a_record_are_reported() -> None:
    data = {"messages": [{"role": "who", "content": 1}, {"role": "assistant", "content": " ", "loss": -2}], "system": 1}
    assert [(problem.code, problem.turn) for problem in problems(data)] == [
        ("bad-shape", None),
        ("bad-shape", 1),
        ("bad-shape", 1),
        ("bad-shape", 2),
        ("empty-answer", 2),
    ]


def test_messages_stay_short_whatever_they_quote() -> None:
    nested: Any = "x"
    for _ in range(1000):
        nested = [nested]
    for data in (
        {"messages": [{"role": nested, "content": "x"}]},
        {"messages": [{"role": "x" * 10_000, "content": nested}]},
        {"messages": nested},
        {f"{number}" * 1000: 1 for number in range(1000)},
        openai("<image>", "y", images=[nested]),
    ):
        assert all(len(problem.message) < 1000 for problem in problems(data))
