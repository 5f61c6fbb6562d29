"""The page on data formats says what is so: every record in its tables is read, or refused for the reason given."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_shapes import problems, read, said

PAGE = (Path(__file__).parents[2] / "docs" / "data-format.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """Cells of the table under a heading."""
    table = re.split(r"\n##", PAGE.split(f"### {heading}\n")[1])[0]
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def settings(cell: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in re.findall(r"`([^`]*)`", cell):
        found |= yaml.safe_load(text)
    return found


READ = rows("I have this → write this")
REFUSED = rows("What is refused, and why")


@pytest.mark.parametrize("row", READ, ids=lambda row: row[0])
def test_every_record_of_the_page_is_read(row: list[str]) -> None:
    data, source = json.loads(row[1].strip("`")), settings(row[2] if len(row) > 2 else "")
    conversation = read(data, **source)
    text = "".join(text for _, text in said(conversation))
    names = re.findall(r"[ab]\.jpg", row[1])
    assert len(conversation.images) == len(names), "no image is lost"
    assert all(name in text for name in names)
    assert conversation.turns[-1].role == "assistant"
    if source:
        assert problems(data), "and what is to be written is needed"


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row[0])
def test_every_other_record_of_the_page_is_refused_for_its_reason(row: list[str]) -> None:
    found = problems(json.loads(row[1].strip("`")))
    assert any(row[2].strip("`") in problem.message for problem in found), found


def test_the_plainest_record_is_read() -> None:
    plain = json.loads(PAGE.split("```json\n")[1].split("```")[0])
    assert said(read(plain))[0] == ("user", "[a.jpg]What is this? [b.jpg]And this?")
