"""What the project says of itself is true: generated pages, example run files, the command list."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import yaml

from triptych.run.run_file import load

ROOT = Path(__file__).parent.parent


def test_generated_pages_are_current() -> None:
    pages = runpy.run_path(str(ROOT / "tools" / "write_reference.py"))["pages"]()
    assert pages
    for path, content in pages.items():
        assert path.read_text(encoding="utf-8") == content, f"run `make docs`: {path.name} is out of date"


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_example_run_files_hold_known_settings(path: Path) -> None:
    assert load(path).model.path


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))])
def test_run_files_shown_in_the_docs_hold_known_settings(page: str, tmp_path: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for block in text.split("```yaml\n")[1:]:
        content = block.split("```")[0]
        if {"model", "data", "output"} <= yaml.safe_load(content).keys():
            path = tmp_path / "run.yaml"
            path.write_text(content, encoding="utf-8")
            load(path)


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))])
def test_links_between_pages_lead_somewhere(page: str) -> None:
    import re

    path = ROOT / page
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), f"{page} links to {target}"
