"""docs/faq.md: the messages it explains are messages of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from messages import fixed, said

ROOT = Path(__file__).parents[1]
CODES = ("image-missing", "marker-count", "image-unreadable", "role-order", "bad-shape", "too-long")
HEADINGS = re.findall(r"^### `(.+)`$", (ROOT / "docs" / "faq.md").read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("heading", HEADINGS)
def test_a_message_of_the_page_is_one_of_the_code(heading: str) -> None:
    code, _, rest = heading.partition(": ")
    message = rest if code in CODES else heading
    for fragment in fixed(message):
        assert fragment in said(), f"no message says {fragment!r}"


def test_both_pages_explain_the_same_messages() -> None:
    chinese = (ROOT / "docs" / "faq.zh-CN.md").read_text(encoding="utf-8")
    assert re.findall(r"^### `(.+)`$", chinese, re.M) == HEADINGS
    assert len(HEADINGS) > 20
