"""What a record holds under keys and marks that are not read: a problem with its remedy, and notes stay notes."""

from __future__ import annotations

from typing import Any

import pytest
from test_shapes import AB, B64, A, Q, problems, read, said, turns

from triptych.errors import Origin
from triptych.sources.records import ImageRef
from triptych.sources.references import holds_images, is_empty

PLAIN = turns("Which?", "This.")

IMAGES: dict[str, Any] = {
    "imgs": AB,
    "img": "a.png",
    "pictures": ["a.png"],
    "photo": "x/0001",
    "media": [{"type": "image", "path": "a.png"}],
    "image_1": "a.png",
    "images_2": ["b.png"],
    "image0": {"bytes": None, "path": "c.png"},
    "image_list": ["a.png"],
    "image_paths": ["000001", "000002"],
    "image_path": "a.png",
    "imagePath": "a.png",
    "leftImage": "a.png",
    "left": "left/a.JPG",
    "prior": '["b.png"]',
    "image_base64": "AAAA",
    "img_b64": B64 * 2,
    "encoded": B64 * 2,
    "payload": f"data:image/png;base64,{B64}",
    "file_name": "a.png",
    "image_url": "https://example.com/view",
    "photo_url": "https://example.com/a.webp?x=1",
    "frames": ["f1.jpg", "f2.jpg"],
    "pixel_values": [[[0, 1], [2, 3]]],
    "meta": {"inner": {"image": "a.png"}},
    "embedded": ImageRef("x[0]", "member:x"),
    "embedded_list": [None, ImageRef("x[0]", "member:x")],
    "mask": "a_mask.png",
}


@pytest.mark.parametrize("key", IMAGES)
def test_images_under_a_key_that_is_not_read_are_refused_with_what_to_write(key: str) -> None:
    (problem,) = problems({**PLAIN, key: IMAGES[key]})
    assert problem.code == "bad-shape"
    assert f"`{key}` holds images that are not read; write `columns: {{images: {key}}}`" in problem.message
    assert f"ignore: [{key}]" in problem.message
    assert said(read({**PLAIN, key: IMAGES[key]}, ignore=[key])) == said(read(PLAIN))


@pytest.mark.parametrize("key", sorted(IMAGES.keys() - {"mask"}))
def test_images_under_other_keys_of_a_turn_too(key: str) -> None:
    data = turns("Which?", "This.")
    data["messages"][0][key] = IMAGES[key]
    (problem,) = problems(data)
    assert (problem.code, problem.turn) == ("bad-shape", 1)
    assert f"`{key}` of a turn holds images" in problem.message
    assert said(read(data, ignore=[key])) == said(read(PLAIN))


def test_the_remedy_names_all_keys_and_works() -> None:
    numbered = {**turns(Q, A), "image_1": "a.png", "image_2": "b.png"}
    (problem,) = problems(numbered)
    assert 'columns: {images: "image_{n}"}' in problem.message
    assert len(read(numbered, columns={"images": "image_{n}"}).images) == 2
    second = {**turns(Q, A), "image": "a.png", "prior_image": "b.png"}
    assert "columns: {images: [image, prior_image]}" in problems(second)[-1].message
    assert len(read(second, columns={"images": ["image", "prior_image"]}).images) == 2


NOTES: dict[str, Any] = {
    "id": "coco_000001.jpg",
    "source": "coco/train/x.jpg",
    "image_id": 17,
    "image_width": 640,
    "width_list": [112, 112],
    "height": 84,
    "image_type": "Real",
    "image_relation": "Cropped/Zoomed",
    "has_image": "true",
    "num_images": 3,
    "caption": "A dog on a lawn, from photo.png I think.",
    "image_caption": "A dog.",
    "notes": "see a.png",
    "url": "https://example.com/page.html",
    "bbox": [[1, 2, 3, 4]],
    "image_bbox": [[1, 2, 3, 4]],
    "image_size": [640, 480],
    "image_grid_thw": [[1, 2, 3]],
    "metadata": {"dataset": "NLVR2", "split": "train", "num_sample": 3, "task_instruction": ""},
    "choice_list": None,
    "channel": "math",
    "score": 0.25,
    "split": "train",
    "weight": 1,
    "train": True,
    "label": 1,
    "loss_scale": 1.0,
    "mask": None,
    "reasoning_content": "",
    "tool_calls": [],
    "question_type": "open-ended",
    "question": "Which?",
    "answer": "This.",
    "prompt": "Which?",
    "media_type": "photo",
    "license": "CC-BY",
    "relevance_ratings": [3, 4],
    "text": "A story. With dots.",
}


@pytest.mark.parametrize("key", NOTES)
def test_notes_stay_notes(key: str) -> None:
    plain = turns("<image>?", "This.", images=["x/a.png"])
    assert said(read({**plain, key: NOTES[key]})) == said(read(plain))
    assert said(read({**PLAIN, key: NOTES[key]})) == said(read(PLAIN))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_path", "/data/x/a.png"),
        ("file_name", "a.png"),
        ("coco_url", "http://images.example.org/val/1.jpg"),
        ("image_name", "x/a.png"),
        ("meta", {"file": "a.png"}),
    ],
)
def test_another_name_of_an_image_that_is_read_is_a_note(key: str, value: Any) -> None:
    assert len(read({**turns("<image>?", "y", images=["x/a.png"]), key: value}).images) == 1


def test_a_file_of_the_same_last_name_elsewhere_is_another_image() -> None:
    assert holds_images("right", "right/1.png", ["left/1.png"])
    assert not holds_images("right", "set/left/1.png", ["left/1.png"])


CHANGES: list[tuple[str, Any]] = [
    ("rejected_response", "No."),
    ("chosen", {"from": "gpt", "value": "x"}),
    ("rejected", [{"role": "assistant", "content": "x"}]),
    ("label", True),
    ("label", False),
    ("tools", '[{"title": "zoom"}]'),
    ("chat_template_kwargs", {"enable_thinking": False}),
    ("loss_scale", -2.0),
    ("weight", [1, 2]),
    ("mask", 1),
    ("mask", [0, 1]),
    ("videos", ["a.mp4"]),
    ("audio", "a.wav"),
    ("reasoning_content", "Hm."),
]


@pytest.mark.parametrize(("key", "value"), CHANGES)
def test_what_changes_training_is_refused_in_a_record(key: str, value: Any) -> None:
    (problem,) = problems({**PLAIN, key: value})
    assert problem.code == "bad-shape"
    assert f"`{key}`" in problem.message
    assert "ignore" in problem.message
    assert said(read({**PLAIN, key: value}, ignore=[key])) == said(read(PLAIN))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tool_calls", [{"id": "1"}]),
        ("function_call", {"name": "zoom", "arguments": "half of {"}),
        ("reasoning_content", ["Hm."]),
        ("thinking", "Hm."),
        ("loss_scale", -2.0),
        ("loss_mask", 0.5),
        ("weight", "high"),
        ("loss", "no"),
        ("mask", True),
        ("train_detail", [{"begin": 0}]),
        ("label", False),
    ],
)
def test_what_changes_training_is_refused_in_a_turn(key: str, value: Any) -> None:
    data = turns("Which?", "This.")
    data["messages"][1][key] = value
    assert {(problem.code, problem.turn) for problem in problems(data)} == {("bad-shape", 2)}
    assert f"`{key}`" in problems(data)[0].message


def test_keys_of_a_turn_that_contradict_each_other_are_refused() -> None:
    data = turns("Which?", "This.")
    data["messages"][1].update(weight=0, train=True)
    assert "contradict" in problems(data)[0].message


@pytest.mark.parametrize(
    ("part", "word"),
    [
        ({"type": "image", "image": "a.png", "total_pixels": 50176}, "total_pixels"),
        ({"type": "image", "image": "a.png", "resized_height": 280}, "resized_height"),
        ({"type": "image_url", "image_url": "a.png", "detail": "low"}, "detail"),
        ({"type": "image", "image": "a.png", "text": "a caption"}, "text"),
        ({"type": "text", "text": "x", "image": "a.png"}, "image"),
        ({"type": "text", "text": "x", "extra": ["a.png"]}, "extra"),
        ({"type": "image", "index": -1}, "index"),
        ({"type": "image", "index": "0"}, "index"),
    ],
)
def test_what_a_part_holds_beside_is_refused(part: dict[str, Any], word: str) -> None:
    (problem,) = problems(turns([part, {"type": "text", "text": "?"}], "y", images=["a.png"]))
    assert (problem.code, problem.turn) == ("bad-shape", 1)
    assert f"`{word}" in problem.message


def test_sizes_of_a_part_may_be_left_out_on_purpose() -> None:
    part = {"type": "image", "image": "a.png", "min_pixels": 3136, "max_pixels": 50176}
    assert len(read(turns([part], "y"), ignore=["min_pixels", "max_pixels"]).images) == 1
    assert len(read(turns([{"type": "image", "image": "a.png", "max_pixels": None}], "y")).images) == 1


MARKS = [
    "<ImageHere>",
    "<image1>",
    "<image_2>",
    "<image 3>",
    "<IMG_1>",
    "<|image_1|>",
    "<image_placeholder>",
    "<start_of_image>",
    "<IMG_CONTEXT>",
    "<video>",
    "<audio>",
    "<bbox>",
    "<ref-object>",
    "<|image_pad|>",
    "<|vision_start|><|image_pad|><|vision_end|>",
    "![](a.png)",
    "![a dog](imgs/a.jpg 'title')",
    "![](https://example.com/a.png)",
]


@pytest.mark.parametrize("mark", MARKS)
def test_marks_of_other_tools_are_refused_with_a_remedy(mark: str) -> None:
    (problem,) = problems(turns(f"See {mark} here", "yes"))
    assert (problem.code, problem.turn) == ("bad-shape", 1)
    assert mark.removeprefix("<|vision_start|>")[:12] in problem.message
    assert any(word in problem.message for word in ("mark:", "write", "text part"))
    part = turns([{"type": "text", "text": f"See {mark} here"}], "yes")
    if mark.startswith("!["):
        assert problems(part)[0].code == "bad-shape"  # it names a file: no text
    else:
        assert said(read(part))[0] == ("user", f"See {mark} here")


def test_the_mark_that_a_message_names_can_be_set() -> None:
    data = turns("<ImageHere> or <ImageHere>?", "y", images=AB)
    assert 'mark: "<ImageHere>"' in problems(data)[0].message
    data = turns("<image_1> or <image_2>?", "y", images=AB)
    assert 'mark: "<image_{n}>"' in problems(data)[0].message
    other = problems(turns("[IMG] or [IMG]?", "y", images=AB))[0]
    assert (other.code, 'mark: "[IMG]"' in other.message) == ("marker-count", True)


@pytest.mark.parametrize(
    "text",
    [
        "Write <img src='a.png'> in HTML, or <b>bold</b>.",
        "<video controls></video>",
        "the `<video>` element",
        "a <|im_end|> b <|endoftext|>",
        "1 < 2 > 0 ![not](a link)",
        "see [the docs](a.md)",
        "<img>not a file</img>",
        "x <- y; <T>",
    ],
)
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_other_markup_is_text(text: str, role: str) -> None:
    contents = (text, "yes") if role == "user" else ("Which?", text)
    assert said(read(turns(*contents))) == [("user", contents[0]), ("assistant", contents[1])]


def test_an_answer_may_speak_of_addresses_and_elements() -> None:
    for text in ("![x](https://example.com/a.png)", "Use <video> for that."):
        assert said(read(turns("How?", text)))[1] == ("assistant", text)
    assert problems(turns("How?", "![x](out/a.png)"))[0].turn == 2


def test_a_pad_token_beside_images_is_text() -> None:
    assert len(read(turns("<image> then <|image_pad|>", "y", images=["a.png"])).images) == 1


def test_an_img_tag_in_a_text_part_is_refused() -> None:
    part = {"type": "text", "text": "See <img>a.png</img>"}
    assert "a part of its own" in problems(turns([part], "y"))[0].message


def test_a_system_prompt_under_another_key_is_not_lost() -> None:
    data = {**PLAIN, "system_prompt": "Be brief."}
    assert "columns: {system: system_prompt}" in problems(data)[0].message
    assert said(read(data, columns={"system": "system_prompt"}))[0] == ("system", "Be brief.")
    assert said(read({**data, "system": "Be brief."}))[0] == ("system", "Be brief.")


def test_other_turns_beside_the_dialogue_are_not_lost() -> None:
    first, second = PLAIN["messages"]
    assert len(read({**PLAIN, "prompt": [first]}).turns) == 2  # the same turns again
    assert "other turns" in problems({**PLAIN, "completion": [{**second, "content": "That."}]})[0].message


@pytest.mark.parametrize("value", [None, "", " ", [], {}, [None, ""], {"a": [None]}, "[]", "null"])
def test_nothing_is_nothing_at_any_depth(value: Any) -> None:
    assert is_empty(value)


@pytest.mark.parametrize("value", [0, False, "x", [0], {"a": False}, "[1]"])
def test_something_is_something(value: Any) -> None:
    assert not is_empty(value)


def test_deep_nesting_is_a_problem_and_no_crash() -> None:
    deep: Any = "a.png"
    for _ in range(900):
        deep = [deep]
    for data in ({**PLAIN, "imgs": deep}, {**PLAIN, "images": deep}, turns(deep, "y"), {"messages": deep}):
        for problem in problems(data) if data.get("imgs") is None else []:
            assert problem.origin == Origin("data.json", 7)
