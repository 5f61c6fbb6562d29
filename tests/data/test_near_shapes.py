"""Shapes that are nearly known: read where only one meaning is possible, else a problem that says what to write."""

from __future__ import annotations

from typing import Any

import pytest
from test_shapes import AB, MODEL, TWO, USER, A, Q, problems, read, said, turns

from triptych.images.near_names import tell_tale
from triptych.sources.references import is_blank, is_empty, read_images

PLAIN = turns("Which?", "This.")


@pytest.mark.parametrize("answer", ["None", "[]", "{}", "null", "[None]", "none"])
def test_words_that_look_like_nothing_are_answers_and_questions(answer: str) -> None:
    assert is_empty(answer)
    assert not is_blank(answer)
    assert said(read({"question": "What is missing?", "answer": answer}))[1] == ("assistant", answer)
    assert said(read({"instruction": "Say it.", "input": answer, "output": "ok"}))[0] == ("user", f"Say it.\n{answer}")
    texts = {"texts": [{"user": answer, "assistant": "ok"}]}
    assert said(read(texts))[0] == ("user", answer)
    choice = {"question": "Which?", "options": [answer, "some"], "answer": "A"}
    assert said(read(choice, choice={}))[0] == ("user", f"Which?\nA. {answer}\nB. some")
    data = turns("Which?", answer)
    data["messages"][1]["value"] = answer
    assert said(read(data))[1] == ("assistant", answer)


@pytest.mark.parametrize("value", [None, "", " \n", [], {}, [None, " "], {"a": [None]}])
def test_what_is_blank(value: Any) -> None:
    assert is_blank(value)


def test_lists_of_images_printed_by_python_are_read() -> None:
    for images in ("('a.png', 'b.png')", "['a.png', 'b.png']", ["('a.png',)", "b.png"], [("a.png", "b.png")]):
        assert said(read(turns(Q, A, images=images))) == TWO, images
    assert [ref.source for ref in read_images(["(copy) a.png", "(1).png"])] == ["(copy) a.png", "(1).png"]


def test_answers_printed_as_a_list_of_one_are_the_answer_and_of_several_are_refused() -> None:
    assert said(read({"question": "Which?", "answer": "['This.']"})) == said(read(PLAIN))
    assert "list of 2" in problems({"question": "Which?", "answer": "['This.', 'That.']"})[0].message
    for words in ('["This."]', "[1, 2]", "['a', 2]", "(x, y)", "['open"):
        assert said(read({"question": "Which?", "answer": words}))[1] == ("assistant", words)


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"response": "That."}, "`answer` and `response` may both answer `question`"),
        ({"output": "That."}, "ignore: [output]"),
        ({"completion": "That."}, "ignore: [completion]"),
        ({"input": "A long story."}, "`input` beside `question` is not read"),
        ({"context": "A long story."}, "ignore: [context]"),
    ],
)
def test_a_second_answer_or_a_text_beside_the_question_is_not_lost(extra: dict[str, Any], named: str) -> None:
    data = {"question": "Which?", "answer": "This."}
    (problem,) = problems({**data, **extra})
    assert named in problem.message
    (key,) = extra
    assert said(read({**data, **extra}, ignore=[key])) == said(read(data))
    for same in (None, " ", data["answer"] if key in ("response", "output", "completion") else data["question"]):
        assert said(read({**data, key: same})) == said(read(data))


def test_columns_say_which_of_two_answers_is_meant() -> None:
    data = {"question": "Which?", "answer": "C", "output": "This."}
    assert said(read(data, columns={"question": "question", "answer": "output"})) == said(read(PLAIN))


@pytest.mark.parametrize(
    ("data", "advice"),
    [
        ({"problem": "Q?", "solution": "A."}, "columns: {question: problem, answer: solution}"),
        ({"text_input": "Q?", "text_output": "A."}, "columns: {question: text_input, answer: text_output}"),
        ({"question": "Q?", "label": "A."}, "columns: {question: question, answer: label}"),
        ({"user": "Q?", "assistant": "A."}, "columns: {question: user, answer: assistant}"),
        ({"query": "Q?", "answer": "A."}, "columns: {question: query, answer: answer}"),
        ({"instruction": "Q?", "responses": ["A."]}, "columns: {question: instruction, answer: responses}"),
    ],
)
def test_pairs_under_other_keys_come_with_the_map_that_works(data: dict[str, Any], advice: str) -> None:
    (problem,) = problems(data)
    assert f"write `{advice}`" in problem.message
    question, answer = data
    conversation = read(data, columns={"question": question, "answer": answer})
    assert said(conversation) == [("user", "Q?"), ("assistant", "A.")]


@pytest.mark.parametrize("kind", ["Image", "IMAGE", "img", "picture", "image/png", " image "])
def test_other_names_of_the_type_of_a_part(kind: str) -> None:
    first, second = {"type": kind, "image": "a.png"}, {"type": kind, "path": "b.png"}
    content = [first, {"type": "Text", "text": "left "}, second, {"type": "text", "text": "right?"}]
    assert said(read(turns(content, A))) == TWO


@pytest.mark.parametrize("key", ["image_id", "image_index", "position", "ref", "name", "no"])
def test_an_image_part_that_may_say_which_one_it_is_needs_an_index(key: str) -> None:
    content = [{"type": "image", key: 1}, {"type": "image", key: 0}, {"type": "text", "text": "?"}]
    (problem,) = problems(turns(content, A, images=AB))
    assert f"`{key}` may say which one it is; write `index`" in problem.message
    assert len(read(turns(content, A, images=AB), ignore=[key]).images) == 2
    named = [{"type": "image", "image": name, key: 1} for name in AB]
    assert len(read(turns([*named, {"type": "text", "text": "?"}], A)).images) == 2  # it has a name: a note
    for value in (None, "", True):
        plain = [{"type": "image", key: value}, {"type": "text", "text": "?"}]
        assert len(read(turns(plain, A, images=AB[:1])).images) == 1


def test_the_system_prompt_beside_the_dialogue_and_again_in_it_is_one() -> None:
    system = {"role": "system", "content": "Be brief."}
    data = {"system": "Be brief.", "messages": [system, USER, MODEL], "images": AB}
    assert said(read(data)) == [("system", "Be brief."), *TWO]
    data["system"] = "Be long."
    assert problems(data)[0].code == "role-order"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, False) for key in ("train_on", "supervised", "learnable", "compute_loss", "include_loss")),
        *((key, True) for key in ("masked", "no_loss", "ignore", "skip", "exclude")),
    ],
)
def test_a_key_that_may_leave_a_turn_out_is_refused(key: str, value: bool) -> None:
    for place in ("record", "turn"):
        for said_value in (value, not value):
            data = turns("Which?", "This.")
            (data if place == "record" else data["messages"][1])[key] = said_value
            if said_value is value:
                (problem,) = problems(data)
                assert f"`{key}: {str(value).lower()}` may leave it out of training" in problem.message, place
                assert said(read(data, ignore=[key])) == said(read(PLAIN)), place
            else:
                assert said(read(data)) == said(read(PLAIN)), place


@pytest.mark.parametrize(
    ("value", "weight"), [("0.5", 0.5), ("1", 1.0), ("true", 1.0), ("2.", 2.0), ("important", 1.0), ("", 1.0)]
)
def test_weights_of_a_csv_file_are_texts(value: str, weight: float) -> None:
    assert read({**PLAIN, "weight": value}).weight == weight


@pytest.mark.parametrize("value", ["0", "false", "0.0", "False"])
def test_a_weight_of_nothing_in_a_text_is_refused(value: str) -> None:
    assert problems({**PLAIN, "weight": value})[0].code == "empty-answer"


@pytest.mark.parametrize(
    "mark",
    [
        "<image: a.png>",
        "<|image:imgs/a.jpg|>",
        '<img="a.png">',
        "[image: a.png]",
        "[[img=a.jpg]]",
        "[img]a.png[/img]",
        "<|vision_start|>a.png<|vision_end|>",
        "<IMAGE>",
    ],
)
def test_marks_that_name_their_file_are_refused(mark: str) -> None:
    (problem,) = problems(turns(f"See {mark} here", "yes"))
    assert (problem.code, problem.turn) == ("bad-shape", 1)
    assert "is not read" in problem.message
    assert said(read(turns([{"type": "text", "text": f"See {mark} here"}], "yes")))[0][1] == f"See {mark} here"


@pytest.mark.parametrize("text", ["[image: not shown]", "<image: a dog>", "[img]", "see [image: none] now", "[1] [2]"])
def test_words_in_brackets_are_text(text: str) -> None:
    assert said(read(turns(text, "yes")))[0] == ("user", text)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/d/a.png, b.png", "several names"),
        ("/d/a.png;b.jpg", "several names"),
        ("/d/a.png|b.png|c.png", "several names"),
        ("/d/array(['a.png', 'b.png'], dtype=object)", "NumPy"),
    ],
)
def test_several_names_in_one_text_are_told(path: str, words: str) -> None:
    assert words in str(tell_tale(path))
    assert tell_tale("/d/Paris, France.png") is None


def test_small_things_come_with_what_to_write() -> None:
    role = problems({"messages": [{"role": "expert", "content": "x"}, MODEL]})[0].message
    assert "`{user: ...}` or `{assistant: ...}`" in role
    content = problems({"messages": [{"role": "user", "content": {"type": "text", "text": "x"}}, MODEL]})[0].message
    assert "write [...] around it" in content
