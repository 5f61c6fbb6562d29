"""Tokenize English text word by word: a word that was seen before costs a look-up instead of merges.

The family's tokenizers cut text into words by a regular expression before they look for merges, and no merge crosses a
word. So the ids of a text are those of its words, and the tokenizer itself gives the ids of each word once. Only text
that is ASCII goes this way, since there Python's ``re`` cuts exactly as the tokenizer does; everything else goes to the
tokenizer whole. Real text repeats its words: this is several times faster.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

from tokenizers import Tokenizer

ASCII_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\na-zA-Z0-9]?[a-zA-Z]+|[0-9]| ?[^\sa-zA-Z0-9]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How the family cuts text: Qwen2 to Qwen3, and Qwen3.5, which keeps combining marks with their letters (none is ASCII).
KNOWN_PATTERNS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+",
}
LONGEST = 40
"""Characters of a word that is remembered; longer ones hardly come again."""
MOST = 200_000
"""Words that are remembered; with more, all are forgotten."""


class WordTokenizer:
    """Ids of texts, equal to those of ``tokenizer.encode``; special-token text is plain text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, tuple[int, ...]] = {}
        self._cut = re.compile(ASCII_WORDS, re.ASCII).findall if _cuts_as_known(tokenizer) else None
        # These are matched before text is cut into words.
        added = tokenizer.get_added_tokens_decoder().values()
        whole = [re.escape(token.content) for token in added if not token.special]
        self._whole = re.compile("|".join(whole)) if whole else None

    def encode_all(self, texts: Sequence[str]) -> list[Sequence[int]]:
        """Ids of each text, without any that a template would add."""
        cut = [self._words(text) for text in texts]
        if len(self._known) > MOST:
            self._known = {}
        known = self._known  # another thread may start again meanwhile
        new = list({word for words in cut if words is not None for word in words}.difference(known))
        if too_long := {word for word in new if len(word) > LONGEST}:
            cut = [None if words is not None and not too_long.isdisjoint(words) else words for words in cut]
            new = [word for word in new if word not in too_long]
        known |= zip(new, map(tuple, self._encode(new)), strict=True)
        whole = iter(self._encode([text for text, words in zip(texts, cut, strict=True) if words is None]))
        return [
            next(whole) if words is None else list(chain.from_iterable(map(known.__getitem__, words))) for words in cut
        ]

    def _words(self, text: str) -> list[str] | None:
        """The words of a text, or None for one that the tokenizer must see whole."""
        if self._cut is None or not text.isascii() or (self._whole is not None and self._whole.search(text)):
            return None
        words: list[str] = self._cut(text)
        return words

    def _encode(self, texts: list[str]) -> list[list[int]]:
        found = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False) if texts else []
        return [encoding.ids for encoding in found]


def _cuts_as_known(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer works on words as described above, so that ASCII text may be cut here."""
    steps = _state(tokenizer.pre_tokenizer)
    parts = steps.get("pretokenizers", [])
    dropout = getattr(tokenizer.model, "dropout", None)
    return (
        _state(tokenizer.normalizer) in ({}, {"type": "NFC"})  # which leaves ASCII as it is
        and [part["type"] for part in parts] == ["Split", "ByteLevel"]
        and parts[0]["pattern"].get("Regex") in KNOWN_PATTERNS
        and (parts[0]["behavior"], parts[0]["invert"]) == ("Isolated", False)
        and not parts[1]["add_prefix_space"]
        and not parts[1]["use_regex"]
        and not dropout
    )


def _state(component: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(component.__getstate__()) if component is not None else {}
    return found
