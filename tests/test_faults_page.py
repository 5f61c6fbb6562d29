"""docs/faults.md: every line that it quotes is one of the code, and every test that it names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from messages import fixed, is_said, strings

ROOT = Path(__file__).parents[1]
ROW = re.compile(
    r"^\| (?P<fault>.+?) \| (?:`` (?P<long>.+?) ``|`(?P<line>.+?)`)? ?\| (?P<exit>[\d, ]+) \| `(?P<test>.+?)` \|$"
)


def rows(name: str) -> list[re.Match[str]]:
    lines = (ROOT / "docs" / name).read_text(encoding="utf-8").splitlines()
    table = [line for line in lines if line.startswith("|") and "::" in line]
    found = [ROW.match(line) for line in table]
    assert all(found), [line for line, match in zip(table, found, strict=True) if not match]
    return [match for match in found if match]


ROWS = rows("faults.md")


def quoted(row: re.Match[str]) -> str:
    return row["long"] or row["line"] or ""


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["fault"])
def test_the_line_is_one_of_the_code_and_the_test_is_there(row: re.Match[str]) -> None:
    for fragment in fixed(quoted(row)):
        assert is_said(fragment), f"no message says {fragment!r}"
    file, _, name = row["test"].partition("::")
    path = ROOT / "tests" / file
    functions = [node for node in ast.parse(path.read_bytes()).body if isinstance(node, ast.FunctionDef)]
    assert name in [function.name for function in functions], f"tests/{file} has no {name}"


@pytest.mark.parametrize("row", [row for row in ROWS if quoted(row)], ids=lambda row: row["fault"])
def test_the_test_looks_for_words_of_the_line(row: re.Match[str]) -> None:
    looked_for = strings(ROOT / "tests" / row["test"].partition("::")[0])
    words = [fragment.split() for fragment in fixed(quoted(row))]
    pairs = [" ".join(part[place : place + 2]) for part in words for place in range(max(1, len(part) - 1))]
    assert any(pair in looked_for for pair in pairs)


def test_both_pages_list_the_same_faults() -> None:
    assert [(quoted(row), row["exit"], row["test"]) for row in rows("faults.zh-CN.md")] == [
        (quoted(row), row["exit"], row["test"]) for row in ROWS
    ]
    assert len(ROWS) > 80
