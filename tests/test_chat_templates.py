"""Chat templates that people's folders hold, through the CLI: rendered, or replaced with a line that says so."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import families
import tiny
from commands import said
from triptych.family.family import family_template, read_model_files
from triptych.text.tokens.chat_template import ChatTemplate

# As base models are released with: what is said, one after the other.
PLAIN = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)
STRINGS = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}"
)
SHOWN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
CASES: dict[str, tuple[str | None, str]] = {
    "no ChatML": (PLAIN, "has a chat template that renders no turns in ChatML"),
    "strings only": (STRINGS, "has a chat template that takes texts only"),
    "lists as text": (SHOWN, "has a chat template that renders no images"),
    "none": (None, "has no chat template"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose answers do not end at the end of a turn, and its data."""
    made = tmp_path_factory.mktemp("template")
    base = tiny.write_model(made / "base", max_pixels=84 * 84)
    generation = json.loads((base / "generation_config.json").read_text())
    generation["eos_token_id"] = generation["pad_token_id"]
    (base / "generation_config.json").write_text(json.dumps(generation))
    tiny.write_dataset(made, 4, max_images=1)
    return made


def set_template(base: Path, source: str | None) -> None:
    (base / "chat_template.jinja").unlink(missing_ok=True)
    path = base / "tokenizer_config.json"
    content = json.loads(path.read_text())
    content.pop("chat_template", None)
    if source is not None:
        content["chat_template"] = source
    path.write_text(json.dumps(content))


def write_run(folder: Path, base: Path, data: Path) -> Path:
    folder.mkdir(exist_ok=True)
    train = {"epochs": 3, "save_every": 1}
    sources = {"eval": [{"path": str(data)}]}
    return tiny.write_run(folder, base, data, data=sources, train=train, eval={"max_new_tokens": 2})


@pytest.mark.parametrize(("source", "expected"), CASES.values(), ids=CASES)
def test_one_that_cannot_be_used_is_replaced_and_said(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    source: str | None,
    expected: str,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    base = Path(shutil.copytree(folder / "base", tmp_path / "base"))
    set_template(base, source)
    line = f"{base} {expected}; that of Qwen2-VL is used in its place, and saved with the model"
    run = write_run(tmp_path, base, folder / "train.json")
    commands: list[tuple[Any, ...]] = [("check", run), ("encode", folder / "train.json", "--model", base)]
    if source == PLAIN:  # the others differ in the line only
        commands += [("train", run), ("eval", run)]
        commands += [("export", tmp_path / "run" / "final", "--to", tmp_path / "out"), ("chat", base)]
    for command in commands:
        code, text = said(capsys, *command)
        assert code == 0, text
        assert text.count(line) == 1, text
    if source != PLAIN:
        return
    used = family_template("qwen2_vl")
    for made in (tmp_path / "run" / "checkpoint-3", tmp_path / "run" / "final", tmp_path / "out"):
        assert AutoTokenizer.from_pretrained(made).chat_template == used
        assert read_model_files(str(made)).replaced is None
        assert json.loads((made / "tokenizer_config.json").read_text()).get("chat_template", used) == used
    files = read_model_files(str(tmp_path / "out"))
    ends = json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
    assert ends[0] == files.template().turn_end
    assert json.loads((base / "generation_config.json").read_text())["eos_token_id"] in ends, "the base's own is kept"


def test_an_export_that_would_not_stop_or_has_no_template_is_not_proved(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, folder / "base", folder / "train.json")
    final, out = tmp_path / "run" / "final", tmp_path / "out"
    assert said(capsys, "train", run)[0] == 0
    assert said(capsys, "export", final, "--to", out)[0] == 0
    stops = out / "generation_config.json"
    before = stops.read_text()
    for content, ends in (({**json.loads(before), "eos_token_id": 3}, "[3]"), ({}, "nothing")):
        stops.write_text(json.dumps(content))
        code, text = said(capsys, "export", final, "--to", out, "--check")
        assert (code, f"stops at {ends}, and training ended answers at <|im_end|>" in text) == (1, True), text
    stops.write_text(before)
    assert said(capsys, "export", final, "--to", out, "--check")[0] == 0
    (out / "chat_template.jinja").unlink()
    code, text = said(capsys, "export", final, "--to", out, "--check")
    assert (code, "chat template" in text) == (1, True), text


def test_named_templates_keep_their_names_and_the_default_is_the_one_in_use(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = Path(shutil.copytree(folder / "base", tmp_path / "base"))
    set_template(base, None)
    path = base / "tokenizer_config.json"
    named = [{"name": "default", "template": PLAIN}, {"name": "tool_use", "template": "T"}]
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": named}))
    (base / "chat_template.json").write_text(json.dumps({"chat_template": PLAIN}))
    assert said(capsys, "train", write_run(tmp_path, base, folder / "train.json"))[0] == 0
    final, used = tmp_path / "run" / "final", family_template("qwen2_vl")
    assert json.loads((final / "chat_template.json").read_text()) == {"chat_template": used}
    assert json.loads((final / "tokenizer_config.json").read_text())["chat_template"] == [
        {"name": "default", "template": used},
        {"name": "tool_use", "template": "T"},
    ]


THOUGHT = "<think>\nA {n}\n</think>\n\nB {n}"
TALKS: dict[str, list[tuple[str, str]]] = {
    "no thought": [("user", "Which?"), ("assistant", "The first.")],
    "thoughts": [
        ("user", "Which?"),
        ("assistant", THOUGHT.format(n=1)),
        ("user", "And now?"),
        ("assistant", THOUGHT.format(n=2)),
    ],
    "system": [("system", " Be brief. "), ("user", "Which?"), ("assistant", THOUGHT.format(n=1))],
    "empty system": [("system", " "), ("user", "Which?"), ("assistant", "The first.")],
}


@pytest.fixture(scope="module")
def effortful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose template keeps thoughts of earlier answers and asks for effort before the system text."""
    return tiny.write_model(
        tmp_path_factory.mktemp("effort"), family="qwen3_5", chat_template=families.released_template("qwen3_8")
    )


def as_messages(talk: list[tuple[str, str]]) -> list[dict[str, str]]:
    """For a template that takes thoughts apart from the answer."""
    messages = []
    for role, text in talk:
        thought, mark, rest = text.partition("\n</think>\n\n")
        message = {"role": role, "content": rest if mark else text}
        messages.append({**message, "reasoning_content": thought.removeprefix("<think>\n")} if mark else message)
    return messages


@pytest.mark.parametrize("talk", TALKS.values(), ids=TALKS)
def test_a_template_that_keeps_thoughts_and_asks_for_effort_is_rendered(
    effortful: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], talk: list[tuple[str, str]]
) -> None:
    data = tmp_path / "talk.json"
    data.write_text(json.dumps([{"messages": [{"role": role, "content": text} for role, text in talk]}]))
    code, text = said(capsys, "encode", data, "--model", effortful, "--out", tmp_path / "out.jsonl")
    assert code == 0, text
    tokenizer = AutoTokenizer.from_pretrained(effortful)
    found = tokenizer.decode(json.loads((tmp_path / "out.jsonl").read_text())["input_ids"])
    assert found == tokenizer.apply_chat_template(as_messages(talk), tokenize=False)


def test_a_prompt_without_thinking_has_no_instruction_about_effort(effortful: Path) -> None:
    template = read_model_files(str(effortful)).template()
    own = ChatTemplate(families.released_template("qwen3_8"), "qwen3_8")
    assert own.style().effort == template.style.effort
    assert "Reasoning effort" in own.render((("user", "x"),), prompt=True)
    assert "Reasoning effort" not in own.render((("user", "x"),), prompt=True, enable_thinking=False)
    # that Triptych's own prompts are these is what `template()` checks


@pytest.mark.slow
def test_qwen4_exp_goes_all_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tiny.write_model(tmp_path / "base", family="qwen4_exp", max_pixels=96 * 96)
    data = tiny.write_dataset(tmp_path, 3, max_images=1)
    run = write_run(tmp_path, base, data)
    final = tmp_path / "run" / "final"
    for command in (("plan", run), ("train", run), ("eval", run), ("export", final, "--to", tmp_path / "out")):
        code, text = said(capsys, *command)
        assert code == 0, text
    card = (tmp_path / "out" / "README.md").read_text()
    assert "begin the system text with it: `Reasoning effort is set to xhigh" in card
