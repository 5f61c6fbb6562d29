"""Options of commands that read data files: what a source of a run file says, on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from commands import said
from triptych.commands.options import SourceOptions
from triptych.errors import ConfigError, Origin, SampleError
from triptych.sources.records import Record
from triptych.text.conversation import parse

PLAIN = {"query": "<image>Old?", "response": "No."}
TWO = {"query": "<image>Like <image>?", "response": "No.", "left_1": "a.png", "left_2": "b.png"}
OTHER = {"q": "<image>Old?", "a": "No.", "im": "a.png"}
ROLES = [{"who": "U", "say": "<image>Old?"}, {"who": "A", "say": "No."}]
MERGED = [{"role": role, "content": text} for role, text in (("user", "<image>"), ("user", "Old?"), ("gpt", "No."))]
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "columns": ({**PLAIN, "imgs": ["a.png"]}, {"columns": ["images=imgs"]}),
    "several columns": (OTHER, {"columns": ["query=q", "response = a", "images=im"]}),
    "columns as in a run file": (OTHER, {"columns": ["{query: q, response: a, images: im}"]}),
    "a list of columns": (TWO, {"columns": ["images=[left_1, left_2]"]}),
    "columns one by one": (TWO, {"columns": ["images=left_1", "images=left_2"]}),
    "a pattern": (TWO, {"columns": ["images=left_{n}"]}),
    "tags": (
        {"messages": ROLES, "image": "a.png"},
        {"tags": ["role=who", "content=say", "user=U", "{assistant: A}"]},
    ),
    "mark": ({**PLAIN, "query": "[img]Old?", "image": "a.png"}, {"mark": "[img]"}),
    "numbered mark": ({**PLAIN, "query": "<image_1>Old?", "image": "a.png"}, {"mark": "<image_{n}>"}),
    "marks": ({**PLAIN, "query": "Old?", "image": "a.png"}, {"marks": "auto"}),
    "roles": ({"messages": MERGED, "image": "a.png"}, {"roles": "merge"}),
    "choice": (
        {"question": "<image>Old?", "choices": ["yes", "no"], "answer": 1, "image": "a.png"},
        {"choice": ["options=choices", "letters=(A) "]},
    ),
    "ignore": ({**PLAIN, "image": "a.png", "thumbnail": "b.png"}, {"ignore": ["thumbnail"]}),
}


@pytest.mark.parametrize("name", CASES)
def test_an_option_reads_what_is_refused_without_it(name: str) -> None:
    data, options = CASES[name]
    record = Record(data, Origin("x", 1))
    with pytest.raises(SampleError):
        parse(record, SourceOptions().source(["x"]))
    conversation = parse(record, SourceOptions(**options).source(["x"]))
    assert [turn.role for turn in conversation.turns] == ["user", "assistant"]
    assert len(conversation.images) == (2 if data is TWO else 1)


def test_commands_take_them(tmp_path: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_image(tmp_path / "a.png", 40, 60)
    data, plain = tmp_path / "data.jsonl", tmp_path / "plain.jsonl"
    odd = {"q": "[img]Old?", "A": "yes", "B": "no", "right": "B", "imgs": ["a.png"], "thumbnail": "small.png"}
    data.write_text(json.dumps(odd), encoding="utf-8")
    question = "<image>Old?\n(A) yes\n(B) no"
    plain.write_text(json.dumps({"query": question, "response": "B", "images": ["a.png"]}), encoding="utf-8")
    choice = ["--choice", "question=q", "--choice", "options=[A, B]", "--choice", "answer=right"]
    options = [*choice, "--choice", "letters=(A) ", "--columns", "images=imgs", "--mark", "[img]"]
    options += ["--ignore", "thumbnail"]
    code, text = said(capsys, "check", data, *options)
    assert (code, "1 samples, 1 ok" in text) == (0, True), text
    code, text = said(capsys, "encode", data, "--model", model_dir, *options)
    assert code == 0, text
    wanted = json.loads(said(capsys, "encode", plain, "--model", model_dir)[1])
    assert json.loads(text) | {"origin": ""} == wanted | {"origin": ""}


def test_options_that_cannot_be_meant_say_what_is() -> None:
    wrong: dict[str, dict[str, Any]] = {
        "write NAME=KEY, for example --columns images=photos": {"columns": ["imgs"]},
        "did you mean `images`?": {"columns": ["imgaes=imgs"]},
        "only `images` may be a list": {"columns": ["query=[a, b]"]},
        "'{query: a': write NAME=KEY": {"columns": ["{query: a"]},
        "'images=[a': write NAME=KEY": {"columns": ["images=[a"]},
        "'query=': write NAME=KEY": {"columns": ["query="]},
        "`query` is given twice": {"columns": ["query=a", "query=b"]},
        "`tags` has no name `xyz`.": {"tags": ["xyz=who"]},
        "did you mean `options`?": {"choice": ["option=choices"]},
        "`mark` is empty": {"mark": ""},
    }
    for expected, options in wrong.items():
        with pytest.raises(ConfigError) as caught:
            SourceOptions(**options).source(["x"])
        assert expected in str(caught.value), options


def test_a_run_file_has_its_own_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run.yaml"
    run.write_text("x", encoding="utf-8")
    code, text = said(capsys, "check", run, "--columns", "images=imgs", "--allow-remote")
    assert code == 1
    assert "--allow-remote, --columns: for data files; a run file has settings for it" in text
