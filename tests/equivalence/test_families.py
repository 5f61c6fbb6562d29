"""Every family's ids, targets, grids and pixel values are those of its own chat template, tokenizer and processor."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import tiny
from equivalence import image_files, oracle
from equivalence.test_text import BLANKS, CONVERSATIONS, SIZES, Turns, images_of, labels_of, record
from families import FAMILIES, released_template
from triptych.commands.encode import PixelLimits, encode
from triptych.commands.options import SourceOptions
from triptych.errors import ModelError
from triptych.family.family import read_model_files
from triptych.family.template_check import verify

# Answers that think always, whose prompts cannot leave it out: rendered as Qwen3's thinking models do.
ALWAYS_THINKS = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}"
    "{% for m in messages %}{% set t = namespace(all='') %}"
    "{% if m.content is string %}{% set t.all = m.content %}{% else %}{% for c in m.content %}"
    "{% set t.all = t.all + ('<|vision_start|><|image_pad|><|vision_end|>' if c.type == 'image' else c.text) %}"
    "{% endfor %}{% endif %}"
    "{% if m.role == 'assistant' %}{% set said = t.all.split('</think>')[-1].lstrip('\n') %}"
    "{% set thought = t.all.split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in t.all else '' %}"
    "{% set said = said if '</think>' in t.all else t.all %}"
    "<|im_start|>assistant\n{% if loop.index0 > ns.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ said }}"
    "<|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n{{ t.all }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
TEMPLATES = {"qwen3_5-nothink": ("qwen3_5", "qwen3_5_nothink"), "qwen3_5-3_6": ("qwen3_5", "qwen3_6")}
ALWAYS = "qwen3_vl-thinking"
VARIANTS = [*FAMILIES, *TEMPLATES, ALWAYS]
THINKING = [name for name in VARIANTS if name.startswith("qwen3_5") or name == ALWAYS]

THOUGHTS: dict[str, Turns] = {
    "thought": [("user", "<image>Which?"), ("assistant", "<think>\nThe left is larger.\n</think>\n\nThe first.")],
    "thoughts": [
        ("user", "<image>Which?"),
        ("assistant", "<think>\nA cat?\n</think>\n\nA cat."),
        ("user", "And <image>this?"),
        ("assistant", "<think>\nIt barks.\n\nA dog.\n</think>\n\nA dog."),
    ],
    "indented-thought": [("user", "Which?"), ("assistant", "<think>\n  The left.  \n</think>\n\nThe first.")],
    "thought-only-before": [
        ("user", "<image>Which?"),
        ("assistant", "<think>\nA cat?\n</think>\n\nA cat."),
        ("user", "And?"),
        ("assistant", "Yes."),
    ],
    "thoughts-around-a-tool": [
        ("user", "<image>Which?"),
        ("assistant", "<think>\nI look it up.\n</think>\n\nWait."),
        ("user", "<tool_response>\n6\n</tool_response>"),
        ("assistant", "<think>\nSix.\n</think>\n\nThe first."),
    ],
    "opening-left-out": [("user", "Which?"), ("assistant", "The left is larger.\n</think>\n\nThe first.")],
    "empty-thought": [("user", "Which?"), ("assistant", "<think>\n\n</think>\n\nThe first.")],
}


@dataclass
class Model:
    folder: Path
    media: Path
    scratch: Path

    @property
    def processor(self) -> Qwen2VLImageProcessorPil:
        return Qwen2VLImageProcessorPil.from_pretrained(self.folder)

    @property
    def thinks(self) -> bool:
        return read_model_files(str(self.folder)).style.thinking != "none"

    def lines(self, *records: dict[str, Any], pixels: Path | None = None) -> list[dict[str, Any]]:
        out = self.scratch / "out.jsonl"
        data = oracle.write_records(self.scratch, records)
        limits = {"min_pixels": None, "max_pixels": None}
        assert not encode(
            [str(data)],
            model=str(self.folder),
            source=SourceOptions(str(self.media)),
            out=out,
            pixels=pixels,
            limits=PixelLimits(**limits),
        )
        return oracle.read_lines(out)

    def counts(self, turns: Turns) -> list[int]:
        """Language tokens of each image, by transformers."""
        return [self.processor.get_number_of_image_patches(*size) // 4 for size in SIZES[: len(images_of(turns))]]


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    family, template = request.param, None
    if family in TEMPLATES:
        family, name = TEMPLATES[family]
        template = released_template(name)
    elif family == ALWAYS:
        family, template = "qwen3_vl", ALWAYS_THINKS
    folder = tmp_path_factory.mktemp("family")
    for number, (height, width) in enumerate(SIZES):
        tiny.write_image(folder / "media" / f"{number}.png", height, width, seed=number)
    for name in ("rgb.jpg", "alpha.png", "grey16.png", "cmyk.jpg"):
        if name in image_files.FILES:
            (folder / "media" / name).write_bytes(image_files.FILES[name]())
    tiny.write_model(folder / "model", family=family, chat_template=template, texts=BLANKS)
    return Model(folder / "model", folder / "media", folder)


def test_ids_are_the_chat_template_tokenized_as_generation_meets_it(model: Model) -> None:
    cases = {**CONVERSATIONS, **(THOUGHTS if model.thinks else {})}
    # These families' templates refuse an image in a system prompt, or leave it out without a word.
    if not read_model_files(str(model.folder)).style.default_system:
        del cases["image-in-system"]
    lines = model.lines(*(record(turns, images_of(turns), "sharegpt") for turns in cases.values()))
    style = read_model_files(str(model.folder)).style
    for (name, turns), line in zip(cases.items(), lines, strict=True):
        ids, targets = _generated(model, turns, skips=style.skips_thinking)
        assert line["input_ids"] == oracle.expanded(model.folder, ids, model.counts(turns)), name
        assert labels_of(line) == targets, name


# Where every prompt opens a block, it ends within the newlines of an empty one, which one piece would join.
@pytest.mark.parametrize("model", [name for name in VARIANTS if name != ALWAYS], indirect=True)
def test_ids_are_the_chat_template_tokenized_in_one_piece(model: Model) -> None:
    cases = {name: turns for name, turns in CONVERSATIONS.items() if name != "image-in-system"}
    lines = model.lines(*(record(turns, images_of(turns), "sharegpt") for turns in cases.values()))
    for (name, turns), line in zip(cases.items(), lines, strict=True):
        assert line["input_ids"] == oracle.whole_ids(model.folder, turns, model.counts(turns)), name


def test_images_are_what_the_familys_image_processor_makes_of_them(model: Model, tmp_path: Path) -> None:
    names = sorted(path.name for path in model.media.iterdir())
    records = [tiny.record([names[0], name], "<image>and<image>?", "Yes.") for name in names]
    lines = model.lines(*records, pixels=tmp_path / "pixels.npz")
    store = np.load(tmp_path / "pixels.npz")
    for number, (name, line) in enumerate(zip(names, lines, strict=True)):
        upright = [oracle.rgb(model.media / names[0]), oracle.rgb(model.media / name)]
        expected = model.processor(upright, return_tensors="np")
        assert line["image_grid_thw"] == expected["image_grid_thw"].tolist()
        values = store[f"pixel_values_{number}"]
        assert values.shape == expected["pixel_values"].shape
        assert np.abs(values - expected["pixel_values"]).max() < 1e-5


@pytest.mark.parametrize("model", THINKING, indirect=True)
def test_only_what_generation_writes_of_a_thought_is_learned(model: Model) -> None:
    style = read_model_files(str(model.folder)).style
    plain, thought = model.lines(
        record(CONVERSATIONS["text-only"], [], "sharegpt"), record(THOUGHTS["thought"], ["0.png"], "sharegpt")
    )
    decode = oracle.tokenizer(model.folder).decode
    assert [decode(target) for target in labels_of(thought)] == [
        "The left is larger.\n</think>\n\nThe first.<|im_end|>\n"
    ]
    said = "The first.<|im_end|>\n"
    assert [decode(target) for target in labels_of(plain)] == [
        said if style.skips_thinking else f"\n</think>\n\n{said}"
    ]


def test_a_prompt_is_the_chat_templates(model: Model) -> None:
    files = read_model_files(str(model.folder))
    files.template()  # compares prompts and conversations, and raises where they differ
    verify(files.template(), files.chat_template)


def test_another_template_of_the_familys_form_is_refused_where_it_renders_otherwise(
    model: Model, tmp_path: Path
) -> None:
    for path in model.folder.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    source = (model.folder / "chat_template.jinja").read_text()
    (tmp_path / "chat_template.jinja").write_text(source.replace("<|im_end|>", "<|im_end|> "))
    with pytest.raises(ModelError, match="renders a conversation in a way that Triptych cannot"):
        read_model_files(str(tmp_path)).template()


def _generated(model: Model, turns: Turns, *, skips: bool) -> tuple[list[int], list[list[int]]]:
    """Ids of a conversation cut where prompts end, one image per place, and the ids after each cut."""
    tokenizer = oracle.tokenizer(model.folder)
    whole = oracle.rendered(model.folder, turns)
    asked = [number for number, (role, text) in enumerate(turns) if role == "user" and "<tool_response>" not in text]
    last = asked[-1]
    cuts: list[int] = []
    start = 0
    for number, (role, _) in enumerate(turns):
        start = whole.index(f"<|im_start|>{role}\n", start)
        header = start + len(f"<|im_start|>{role}\n")
        end = whole.index("<|im_end|>\n", header) + len("<|im_end|>\n")
        if role == "assistant":
            for opening in ("<think>\n\n</think>\n\n",) * skips + ("<think>\n",):
                if number > last and whole[header:end].startswith(opening):
                    header += len(opening)
                    # Not made up: some prompt of the template ends here.
                    prompts = [
                        tokenizer.apply_chat_template(
                            oracle.messages(turns[:number]),
                            tokenize=False,
                            add_generation_prompt=True,
                            enable_thinking=thinking,
                        )
                        for thinking in (False, True)
                    ]
                    assert whole[:header] in prompts
                    break
            cuts += [header, end]
        start = end
    ids: list[int] = []
    targets: list[list[int]] = []
    for number, (begin, end) in enumerate(zip([0, *cuts], [*cuts, len(whole)], strict=True)):
        piece = tokenizer(whole[begin:end], add_special_tokens=False)["input_ids"]
        if number % 2:
            # The end mark and its newline are put after an answer apart, as a server does.
            said = whole[begin:end].removesuffix("<|im_end|>\n")
            piece = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (said, "<|im_end|>\n")]
            piece = piece[0] + piece[1]
            targets.append(piece)
        ids += piece
    return ids, targets


def test_the_released_templates_are_where_the_tests_expect_them() -> None:
    for name in ("qwen2_5_vl", "qwen3_vl", "qwen3_5_think", "qwen3_5_nothink", "qwen3_6"):
        assert "<|vision_start|>" in json.dumps(released_template(name))
