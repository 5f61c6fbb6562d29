"""Where two texts differ, word by word."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

_WORD = re.compile(r"\s+|[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")
MOST_WORDS = 600
"""Longer texts are shown whole: comparing them takes the square of their length."""

Difference = list[tuple[str, str]]
"""(``=`` both, ``-`` expected only, ``+`` answered only; text) in order"""


def word_difference(expected: str, answered: str) -> Difference:
    """What an answer has more and less than expected, in words; each Chinese or Japanese character is a word."""
    one, two = _WORD.findall(expected), _WORD.findall(answered)
    if expected == answered:
        return [("=", expected)] if expected else []
    if len(one) > MOST_WORDS or len(two) > MOST_WORDS:
        return [("-", expected), ("+", answered)]
    found: Difference = []
    for kind, start, end, first, last in SequenceMatcher(None, one, two, autojunk=False).get_opcodes():
        if kind == "equal":
            found.append(("=", "".join(one[start:end])))
            continue
        if end > start:
            found.append(("-", "".join(one[start:end])))
        if last > first:
            found.append(("+", "".join(two[first:last])))
    return found
