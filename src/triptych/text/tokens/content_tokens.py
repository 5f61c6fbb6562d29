"""Which special tokens of a tokenizer data may write: those that hold content, never those that control the model.

<|box_start|> <|object_ref_end|> <|quad_start|> <my_token>     content: the string becomes its token
<|im_start|> <|endoftext|> <|vision_end|> <|image_pad|>        control: the string stays text
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer

from triptych.errors import ModelError

_CONTROL = re.compile(
    r"<\|(im_\w+|endoftext|(vision|audio|video|image)_\w+|\w+_pad|pad)\|>"
    r"|</?s>|<(unk|pad|bos|eos|mask)>|<tts_\w+>"
)
"""Turns, ends, padding and the marks around what another tower sees."""
_ADDED = re.compile(r'"added_tokens"\s*:\s*(?=\[)')
"""Where their list begins in a tokenizer file, of which the rest need not be parsed twice."""


def is_control(token: str) -> bool:
    """Whether a special token opens or closes a turn, a document or an image, or pads."""
    return _CONTROL.fullmatch(token) is not None


def read_tokenizer(path: Path) -> Tokenizer:
    """Load ``tokenizer.json`` such that its special tokens of content are found in text.

    A tokenizer reads either all special tokens in a text or none of them. So those of content are made plain added
    tokens, which are found in the same way and keep their ids.

    Raises:
        ModelError: if the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        added = _ADDED.search(text)
        if added is not None:
            tokens, end = json.JSONDecoder().raw_decode(text, added.end())
            for token in tokens:
                token["special"] = token["special"] and is_control(token["content"])
            text = text[: added.end()] + json.dumps(tokens) + text[end:]
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception for any defect of the file
        raise ModelError(f"cannot read the tokenizer {path}: {error}") from error


def control_strings(tokenizer: Tokenizer) -> Callable[[str], int]:
    """A function that counts the strings of control tokens in a text."""
    strings = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    find = re.compile("|".join(map(re.escape, strings)) or r"(?!)").findall
    starts = tuple({text[0] for text in strings})

    def count(text: str) -> int:
        return len(find(text)) if any(start in text for start in starts) else 0

    return count


def largest_id(tokenizer: Tokenizer) -> int:
    """The largest id that a text can become."""
    return max([*tokenizer.get_added_tokens_decoder(), tokenizer.get_vocab_size(with_added_tokens=False) - 1])
