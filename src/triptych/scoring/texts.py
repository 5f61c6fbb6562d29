"""Scores of an answer as text: equal, contained, the words in common, the characters that differ."""

from __future__ import annotations

import re
import string
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_TOKEN = re.compile(rf"[{_CJK}]|[^\s{_CJK}]+")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation + "。，、；：？！“”‘’（）《》")


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer and what was expected, thinking left out."""

    prediction: str
    reference: str
    record: dict[str, Any] = field(default_factory=dict)
    """The sample as its file holds it; empty where no scorer asks for it"""


def exact_match(answer: Answered) -> float:
    """Whether both are the same text, white space at the ends aside."""
    return float(answer.prediction.strip() == answer.reference.strip())


def last_line(answer: Answered) -> float:
    """Whether the last lines that are not empty are equal: for answers that reason first."""
    return float(_last_line(answer.prediction) == _last_line(answer.reference))


def contains(answer: Answered) -> float:
    """Whether the expected answer stands in the prediction as whole words, in upper or lower case.

    Chinese and Japanese have no spaces between words: there the text alone decides.
    """
    wanted = answer.reference.strip()
    if not wanted:
        return float(not answer.prediction.strip())
    before = r"(?<![A-Za-z0-9])" if wanted[0].isascii() and wanted[0].isalnum() else ""
    after = r"(?![A-Za-z0-9])" if wanted[-1].isascii() and wanted[-1].isalnum() else ""
    return float(re.search(before + re.escape(wanted) + after, answer.prediction, re.IGNORECASE) is not None)


def extracted(pattern: re.Pattern[str], answer: Answered) -> float:
    """Whether what a regular expression finds is equal: its first group, else all of it; the last place that matches.

    Where the expected answer does not match, it is taken whole.
    """
    found = _extract(pattern, answer.prediction)
    wanted = _extract(pattern, answer.reference)
    return float(found is not None and found == (answer.reference.strip() if wanted is None else wanted))


def token_f1(answer: Answered) -> float:
    """F1 of the words in common, as SQuAD counts it (Rajpurkar et al. 2016): lower case, without punctuation and
    English articles. Each Chinese or Japanese character is a word.
    """
    found, wanted = words(answer.prediction), words(answer.reference)
    if not found or not wanted:
        return float(found == wanted)
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted))


def words(text: str) -> list[str]:
    """The words that ``token_f1`` compares."""
    return _TOKEN.findall(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)))


def anls(answer: Answered) -> float:
    """Normalised Levenshtein similarity, 0 where more than half differs (Biten et al. 2019, for text in images)."""
    one, two = (" ".join(text.lower().split()) for text in (answer.prediction, answer.reference))
    if not one and not two:
        return 1.0
    apart = edit_distance(one, two) / max(len(one), len(two))
    return 1 - apart if apart < 0.5 else 0.0


def edit_distance(one: str, two: str) -> int:
    """Characters to insert, remove or replace to make one text of the other."""
    row = list(range(len(two) + 1))
    for i, left in enumerate(one, 1):
        corner, row[0] = row[0], i
        for j, right in enumerate(two, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (left != right))
    return row[-1]


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _extract(pattern: re.Pattern[str], text: str) -> str | None:
    found = None
    for found in pattern.finditer(text):  # noqa: B007  # the last one counts
        pass
    if found is None:
        return None
    group = found.group(1) if pattern.groups else found.group()
    return None if group is None else group.strip()
