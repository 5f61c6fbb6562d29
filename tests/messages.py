"""What the code says: the strings of its modules, for pages that quote them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHORTEST = 6
"""Characters of a piece of a message that is put together"""


def texts(node: ast.AST) -> Iterator[str]:
    """What a module's strings say, with ``…`` for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                yield from texts(part)
        return
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for child in ast.iter_child_nodes(node):
        yield from texts(child)


def strings(path: Path) -> str:
    """All strings of a module, one a line."""
    return "\n".join(re.sub(r"\s+", " ", text) for text in texts(ast.parse(path.read_bytes())))


@cache
def said() -> str:
    """All strings of the product."""
    return "\n".join(map(strings, sorted((ROOT / "src" / "triptych").rglob("*.py"))))


def fixed(line: str) -> list[str]:
    """The words of a quoted line that do not vary."""
    return [piece for piece in (piece.strip(" :;,.()") for piece in line.split("…")) if piece]


def is_said(words: str) -> bool:
    """Whether these fixed words are of one string of the product, or of several, one after the other."""
    rest = words
    while rest:
        length = next((size for size in range(len(rest), 0, -1) if rest[:size].strip() in said()), 0)
        if length < min(len(rest), SHORTEST):
            return False
        rest = rest[length:].strip(" ;,")
    return True
