"""Text tokenized word by word: the ids are always the tokenizer's own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers

import tiny
from triptych.text.tokens import word_cache
from triptych.text.tokens.word_cache import WordTokenizer

PIECES = (
    "'s",
    "'LL",
    "don't",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\x0b",
    "\x1c",
    "word",
    "Words",
    "7",
    "42",
    "!?",
    "...",
    "<tool>",
)
PIECES += ("<|im_end|>", "<|image_pad|>", "é", "图", "’s", "\u00a0", "_", "a" * 50, "\x85")


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen3_5"])  # each way to cut
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tiny.write_model(tmp_path_factory.mktemp("words") / "model", family=request.param)
    return load(folder)


def load(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    return tokenizer


def whole(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def test_the_family_goes_word_by_word(tokenizer: Tokenizer) -> None:
    assert word_cache._cuts_as_known(tokenizer)


def test_every_pair_of_ascii_characters_is_cut_alike(tokenizer: Tokenizer) -> None:
    texts = [f"a{first}{second}b" for first, second in product(map(chr, range(128)), repeat=2)]
    found = WordTokenizer(tokenizer).encode_all(texts)
    encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    assert [list(ids) for ids in found] == [encoding.ids for encoding in encoded]


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=12).map("".join), max_size=6))
def test_any_texts_get_the_ids_that_the_tokenizer_gives_them(tokenizer: Tokenizer, texts: list[str]) -> None:
    found = WordTokenizer(tokenizer).encode_all(texts)
    assert [list(ids) for ids in found] == [whole(tokenizer, text) for text in texts]


def test_forgetting_words_changes_nothing(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_cache, "MOST", 3)
    by_words = WordTokenizer(tokenizer)
    texts = [f"Compare image {number} with the other one!" for number in range(40)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda text: by_words.encode_all([text])[0], texts))
    assert [list(ids) for ids in found] == [whole(tokenizer, text) for text in texts]


@pytest.mark.parametrize("change", ["pattern", "normalizer", "prefix space"])
def test_a_tokenizer_that_works_otherwise_sees_every_text_whole(tmp_path: Path, change: str) -> None:
    tokenizer = load(tiny.write_model(tmp_path / "model"))
    split = pre_tokenizers.Split(
        Regex(r"\s+|\S+" if change == "pattern" else next(iter(word_cache.KNOWN_PATTERNS))), "isolated"
    )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=change == "prefix space", use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    if change == "normalizer":
        tokenizer.normalizer = normalizers.Lowercase()
    assert not word_cache._cuts_as_known(tokenizer)
    text = "Which DIGIT is larger, isn't it?"
    assert list(WordTokenizer(tokenizer).encode_all([text])[0]) == whole(tokenizer, text)
