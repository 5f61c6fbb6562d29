"""Every document has a Chinese twin that says the same: headings, code blocks, commands, options, tables, links."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHINESE = ".zh-CN.md"
WAITING: set[str] = set()
"""Names of the pages whose twin is still to be written, or brought into step."""
HAN = re.compile("[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]")
SPAN = re.compile(r"``(.+?)``|`([^`]+)`", re.S)
WORD = re.compile(r"[\w./:=<>\[\]{}*-]{2,}", re.A)


@dataclass
class Section:
    """What stands below one heading, up to the next."""

    level: int = 0
    title: str = ""
    text: list[str] = field(default_factory=list)
    """Lines that are neither code nor table"""
    blocks: list[list[str]] = field(default_factory=list)
    tables: list[list[str]] = field(default_factory=list)

    def spans(self) -> set[str]:
        """Commands, options and names in the text and the tables; Chinese ones aside."""
        whole = "\n".join([self.title, *self.text, *(line for table in self.tables for line in table)])
        found = {re.sub(r"\s+", " ", one or two) for one, two in SPAN.findall(whole)}
        return {span for span in found if not HAN.search(span)}


def read(path: Path) -> list[Section]:
    sections, fenced, before = [Section()], False, ""
    for line in path.read_text(encoding="utf-8").splitlines():
        now = sections[-1]
        if line.startswith("```"):
            fenced = not fenced
            if fenced:
                now.blocks.append([line])
        elif fenced:
            now.blocks[-1].append(line)
        elif match := re.match(r"(#+) (.*)", line):
            sections.append(Section(len(match[1]), match[2]))
        elif line.startswith("    ") and (not before or before.startswith("    ")):
            if not before.startswith("    ") and not (now.blocks and now.blocks[-1][-1:] == [""]):
                now.blocks.append([])
            now.blocks[-1].append(line)
        elif line.startswith("|"):
            if not before.startswith("|"):
                now.tables.append([])
            now.tables[-1].append(line)
        else:
            now.text.append(line)
        before = line
    return sections


def same_line(english: str, chinese: str) -> bool:
    """Equal, or translated: in Chinese, and without a name, option or number that the other does not hold."""
    if english.split() == chinese.split():
        return True
    return bool(HAN.search(chinese)) and all(word in english for word in WORD.findall(chinese))


def first_cells(table: list[str]) -> list[set[str]]:
    cells = [re.split(r"(?<!\\)\|", line)[1] for line in table]
    return [{one or two for one, two in SPAN.findall(cell) if not HAN.search(one or two)} for cell in cells]


def slug(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


def links(path: Path) -> list[tuple[Path, str]]:
    """(file, anchor) of every link to a file of the project."""
    found = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", path.read_text(encoding="utf-8"))
    return [(Path(os.path.normpath(path.parent / target)) if target else path, anchor) for target, anchor in found]


def twin(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".md") + CHINESE)


def pages() -> list[Path]:
    every = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [path for path in every if not path.name.endswith(CHINESE)]


def named(path: Path) -> str:
    return path.stem


def in_step() -> list[Path]:
    return [path for path in pages() if path.stem not in WAITING]


def test_every_page_has_a_twin_or_waits_for_one() -> None:
    assert {path.stem for path in pages() if not twin(path).exists()} <= WAITING, "write NAME.zh-CN.md beside it"
    assert {path.stem for path in pages()} >= WAITING, "these pages are gone"


@pytest.mark.parametrize("path", in_step(), ids=named)
def test_a_twin_says_the_same(path: Path) -> None:
    english, chinese = read(path), read(twin(path))
    assert [one.level for one in english] == [one.level for one in chinese], "headings"
    for one, other in zip(english, chinese, strict=True):
        place = f"{path.name}, {one.title!r} / {other.title!r}"
        assert one.spans() == other.spans(), f"{place}: commands, options and names in the text"
        assert len(one.blocks) == len(other.blocks), f"{place}: code blocks"
        for block, translated in zip(one.blocks, other.blocks, strict=True):
            assert len(block) == len(translated), f"{place}: {block[:2]}"
            for line, chinese_line in zip(block, translated, strict=True):
                assert same_line(line, chinese_line), f"{place}:\n{line}\n{chinese_line}"
        assert len(one.tables) == len(other.tables), f"{place}: tables"
        for table, translated in zip(one.tables, other.tables, strict=True):
            assert first_cells(table) == first_cells(translated), f"{place}: first columns"
            assert table[0].count("|") == translated[0].count("|"), f"{place}: columns of {table[0]}"


@pytest.mark.parametrize("path", in_step(), ids=named)
def test_a_twin_links_to_twins(path: Path) -> None:
    targets = {target for target, _ in links(path)} - {twin(path)}
    expected = {twin(target) if twin(target).exists() and target != path else target for target in targets}
    expected = {twin(path) if target == path else target for target in expected}
    found = {target for target, _ in links(twin(path))} - {path}
    assert found == expected, f"{sorted(map(str, found ^ expected))}"


@pytest.mark.parametrize("path", [*in_step(), *map(twin, in_step())], ids=lambda path: path.name)
def test_anchors_are_headings(path: Path) -> None:
    for target, anchor in links(path):
        if anchor:
            anchors = {slug(section.title) for section in read(target)}
            assert anchor in anchors, f"{path.name}: no heading #{anchor} in {target.name}: {sorted(anchors)}"


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_the_readme_links_every_page_in_its_language(readme: str) -> None:
    linked = {target for target, _ in links(ROOT / readme)}
    wanted = [path for path in pages() if path.parent.name == "docs"]
    if readme.endswith(CHINESE):
        wanted = [twin(path) for path in wanted if twin(path).exists()]
    assert not [path.name for path in wanted if path not in linked]
