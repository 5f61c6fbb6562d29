"""docs/faq.md: the messages it explains are messages of the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODES = ("image-missing", "marker-count", "image-unreadable", "role-order", "bad-shape", "too-long")
HEADINGS = re.findall(r"^### `(.+)`$", (ROOT / "docs" / "faq.md").read_text(encoding="utf-8"), re.M)


def texts(node: ast.AST) -> Iterator[str]:
    """What a module's strings say, with ``…`` for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        return
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for child in ast.iter_child_nodes(node):
        yield from texts(child)


@pytest.fixture(scope="module")
def said() -> str:
    files = sorted((ROOT / "src" / "triptych").rglob("*.py"))
    return "\n".join(re.sub(r"\s+", " ", text) for file in files for text in texts(ast.parse(file.read_bytes())))


@pytest.mark.parametrize("heading", HEADINGS)
def test_a_message_of_the_page_is_one_of_the_code(heading: str, said: str) -> None:
    code, _, rest = heading.partition(": ")
    message = rest if code in CODES else heading
    for fragment in (piece.strip() for piece in message.split("…")):
        assert fragment in said, f"no message says {fragment!r}"


def test_both_pages_explain_the_same_messages() -> None:
    chinese = (ROOT / "docs" / "faq.zh-CN.md").read_text(encoding="utf-8")
    assert re.findall(r"^### `(.+)`$", chinese, re.M) == HEADINGS
    assert len(HEADINGS) > 20
