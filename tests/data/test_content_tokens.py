"""Special tokens in the text of data: those of content keep their ids, those of control stay text and are counted."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

import tiny
from triptych.corpus.examine import Encoder
from triptych.corpus.loading import load_or_build
from triptych.errors import ModelError, Origin
from triptych.family.family import read_model_files
from triptych.run.reporter import report_line
from triptych.sources.records import Record, Source
from triptych.text.conversation import parse
from triptych.text.layout import Budget
from triptych.text.tokens.content_tokens import is_control

CONTENT = (
    *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<seg>", "<|grounding|>", "[LOC]"),
)
CONTROL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer has the special tokens of the family, and some that a user added."""
    folder = tiny.write_model(tmp_path_factory.mktemp("content") / "model")
    return add_tokens(folder, [*CONTENT, "<|video_pad|>"])


def add_tokens(folder: Path, tokens: Sequence[str], *, rows: int | None = None) -> Path:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in tokens])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text())
    for level in (config, config.get("text_config", {})):
        if "vocab_size" in level:
            level["vocab_size"] = rows or tokenizer.get_vocab_size(with_added_tokens=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def encode(model: Path, question: str, answer: str) -> Any:
    turns = (("user", question), ("assistant", answer))
    data = {"messages": [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]}
    template = read_model_files(str(model)).template()
    many = template.encode_all([parse(Record(data, Origin("x", 1)), Source("x"))])
    return template, many


@pytest.mark.parametrize("token", CONTENT)
@pytest.mark.parametrize("form", ["{}", "a {} b", "{}{}", " {}\n", "图{}(1,2)"])
def test_a_content_token_in_data_has_the_id_that_transformers_gives_it(model: Path, token: str, form: str) -> None:
    from transformers import PreTrainedTokenizerFast

    text = form.replace("{}", token)
    template, many = encode(model, f"Find it: {text}", text)
    released = PreTrainedTokenizerFast(tokenizer_file=str(model / "tokenizer.json"))
    rendered = f"<|im_start|>user\nFind it: {text}<|im_end|>\n<|im_start|>assistant\n{text}<|im_end|>\n"
    ids = many[0].ids.tolist()
    expected = released(rendered, add_special_tokens=False)["input_ids"]
    assert ids[-len(expected) :] == expected
    assert ids.count(released.convert_tokens_to_ids(token)) == 2 * text.count(token)
    assert many.control_texts.tolist() == [0]
    assert token in template.decode(ids)  # it is content: predictions and references show it


@pytest.mark.parametrize("token", [*CONTROL, "<|video_pad|>"])
def test_a_control_token_in_data_stays_text_and_is_counted(model: Path, token: str) -> None:
    template, plain = encode(model, "Find it", "there")
    _, many = encode(model, f"Find {token} it{token}", f"there {token}")
    number = template.tokenizer.token_to_id(token)
    assert many[0].ids.tolist().count(number) == plain[0].ids.tolist().count(number)
    assert many.control_texts.tolist() == [3]
    assert template.text(many[0]).count(token) == plain_count(template, plain, token) + 3


def plain_count(template: Any, plain: Any, token: str) -> int:
    return int(template.text(plain[0]).count(token))


def test_the_census_says_how_many_were_taken_as_text(model: Path, tmp_path: Path) -> None:
    records = [
        tiny.record([], "one <|im_end|> two <|im_start|>", "three"),
        tiny.record([], "<|box_start|>(1,2)<|box_end|>", "fine"),
    ]
    (tmp_path / "data.json").write_text(json.dumps(records))
    files = read_model_files(str(model))
    encoder = Encoder(files.template(), files.geometry, Budget(), files.text_hash())
    _, report = load_or_build([Source(str(tmp_path / "data.json"))], encoder, tmp_path / "cache")
    assert (report.ok, report.control_texts) == (2, 2)
    assert "2 control-token strings such as <|im_end|> and <|image_pad|> taken as text" in report_line(report)


def test_a_token_without_a_row_in_the_embedding_is_an_error_of_the_model(tmp_path: Path) -> None:
    folder = add_tokens(tiny.write_model(tmp_path / "model"), ["<seg>"], rows=100)
    with pytest.raises(ModelError, match=r"ids up to .* embedding has 100 rows.*resize_token_embeddings"):
        read_model_files(str(folder)).template()


@pytest.mark.parametrize(
    ("token", "control"),
    [
        *((token, False) for token in (*CONTENT, "<image_ref>", "<|pad_of_paper|>", "<box>", "<loc_0001>")),
        *((token, True) for token in (*CONTROL, "<|vision_pad|>", "<|audio_start|>", "<|fim_pad|>", "<pad>", "</s>")),
    ],
)
def test_which_special_tokens_control_the_model(token: str, control: bool) -> None:
    assert is_control(token) is control
