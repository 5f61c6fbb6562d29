"""What a chat template does is found by rendering it, wherever a model folder keeps it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from families import released_template
from triptych.errors import ModelError
from triptych.family.family import FAMILIES, family_template
from triptych.quickstart.tiny import CHAT_TEMPLATE
from triptych.text.tokens.chat_template import PROBES, ChatStyle, ChatTemplate, read_chat_template

THINKING = ChatStyle(thinking="last", skips_thinking=True, trims=True, answers_tools=True)
STYLES = {
    "qwen2_5_vl": ChatStyle(default_system="You are a helpful assistant."),
    "qwen3_vl": ChatStyle(),
    "qwen3_5_think": replace(THINKING, thinks_by_default=True),
    "qwen3_5_nothink": THINKING,
    "qwen3_6": replace(THINKING, thinks_by_default=True),
    "qwen3_8": ChatStyle(
        thinking="all",
        skips_thinking=True,
        thinks_by_default=True,
        trims=True,
        effort=(
            "Reasoning effort is set to xhigh. Please think carefully through the task, validate key assumptions, "
            "consider plausible alternatives, and prioritize correctness, consistency, and clarity in the final answer."
        ),
    ),
}
# The templates that take the place of ones that cannot be used, and released ones of the same families.
OWN = {"qwen2_vl": "qwen2_5_vl", "qwen3_vl": "qwen3_vl", "qwen3_5": "qwen3_5_think"}


@pytest.mark.parametrize("name", OWN)
def test_the_familys_own_template_renders_as_the_released_one(name: str) -> None:
    own, released = ChatTemplate(family_template(name), name), ChatTemplate(released_template(OWN[name]), name)
    assert replace(own.style(), tools="") == replace(released.style(), tools=""), "its own renders no tools"
    for probe in PROBES:
        assert own.render(probe) == released.render(probe)
    for options in ({}, {"enable_thinking": False}):
        prompts = [template.render(PROBES[0][:1], prompt=True, **options) for template in (own, released)]
        assert prompts[0] == prompts[1], options


def test_every_family_has_its_template() -> None:
    assert {family.template for family in FAMILIES.values()} == OWN.keys()


@pytest.mark.parametrize("name", STYLES)
def test_the_released_templates_have_these_styles(name: str) -> None:
    style = ChatTemplate(released_template(name), name).style()
    assert replace(style, tools="") == STYLES[name]
    assert bool(style.tools) == (name != "qwen2_5_vl")


def test_a_changed_default_system_prompt_is_found() -> None:
    changed = CHAT_TEMPLATE.replace("You are a helpful assistant.", "You read scans.")
    assert ChatTemplate(changed, "changed").style().default_system == "You read scans."


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", "T"),
        ("chat_template.json", json.dumps({"chat_template": "T"})),
        ("tokenizer_config.json", json.dumps({"chat_template": "T"})),
        (
            "tokenizer_config.json",
            json.dumps({"chat_template": [{"name": "tool", "template": "U"}, {"name": "default", "template": "T"}]}),
        ),
    ],
)
def test_a_template_is_found_wherever_a_release_keeps_it(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert read_chat_template(tmp_path) == "T"


@pytest.mark.parametrize("content", [{}, {"chat_template": None}, {"chat_template": [{"name": "x", "template": "y"}]}])
def test_a_folder_without_a_template_has_none(tmp_path: Path, content: dict[str, Any]) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(content))
    assert read_chat_template(tmp_path) is None


@pytest.mark.parametrize("content", ["", "[]", '{"chat_template": [1]}', '{"chat_template": [{"name": "x"}]}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(ModelError, match=r"tokenizer_config\.json"):
        read_chat_template(tmp_path)


def test_marks_for_training_elsewhere_are_rendered_through() -> None:
    source = CHAT_TEMPLATE.replace("{% for content", "{% generation %}{% for content").replace(
        "{% endif %}{% endfor %}<|im_end|>", "{% endif %}{% endfor %}{% endgeneration %}<|im_end|>"
    )
    assert "generation" in source
    marked, plain = ChatTemplate(source, "marked"), ChatTemplate(CHAT_TEMPLATE, "plain")
    probe = (("user", "<image>a"), ("assistant", "b"))
    assert marked.render(probe) == plain.render(probe)


def test_a_template_has_what_transformers_gives_it() -> None:
    source = (
        "{{ tools is none }} {{ documents is none }} {{ {'a': '<é>'} | tojson }} {{ strftime_now('%Y') | int > 2000 }}"
    )
    assert ChatTemplate(source, "here").render(()) == 'True True {"a": "<é>"} True'


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% if %}", "not valid"),
        ("{{ raise_exception('no') }}", "refuses a plain conversation: no"),
        ("{{ messages[0].content.no.thing }}", "refuses a plain conversation"),
    ],
)
def test_a_template_that_cannot_be_rendered_is_refused(source: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ChatTemplate(source, "here").style()
