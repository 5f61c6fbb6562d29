"""docs/recipes.md: every run file loads, every record is good in it, and images cost the tokens that are said."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

import families
import triptych

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"
SECTIONS = {part.splitlines()[0]: part for part in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]}
EXPECTED = re.compile(r"(\d+) images of (\d+) x (\d+): (\d+) x ([\d,]+) = ([\d,]+) tokens")


def block(section: str, language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", section, re.S)
    assert len(found) == 1, f"one {language} block in a recipe"
    return str(found[0])


def number(text: str) -> int:
    return int(text.replace(",", ""))


@pytest.fixture(scope="module")
def qwen3_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Any size of the family: geometry and template are the same for all."""
    folder = tmp_path_factory.mktemp("model")
    texts = ["Is the part damaged? Between 2024 and 2023."]
    families.write_family(folder, "qwen3_vl", texts, seed=0, limits={"shortest_edge": 65536, "longest_edge": 16777216})
    return folder


def test_there_is_a_recipe_for_each_use() -> None:
    assert len(SECTIONS) == 6


@pytest.mark.parametrize("name", SECTIONS)
def test_record_and_run_file_work_and_cost_what_is_said(name: str, qwen3_vl: Path, tmp_path: Path) -> None:
    section = SECTIONS[name]
    record, content = json.loads(block(section, "json")), block(section, "yaml")
    said = EXPECTED.search(section)
    assert said is not None, "a recipe says what its images cost"
    count, width, height, times, each, together = map(number, said.groups())
    (tmp_path / "run.yaml").write_text(content, encoding="utf-8")
    for source in (source for split in ("train", "eval") for source in yaml.safe_load(content)["data"][split]):
        data = tmp_path / source["path"]
        data.parent.mkdir(parents=True, exist_ok=True)
        data.write_text(json.dumps(record) + "\n", encoding="utf-8")
        for image in record["images"]:
            file = tmp_path / source["media_dir"] / image
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (width, height), "white").save(file)
    run = triptych.load_run(str(tmp_path / "run.yaml"), {"model.path": str(qwen3_vl)})
    assert run.settings.output.endswith(yaml.safe_load(content)["output"])
    report = triptych.check(run, workers=1)
    assert not report.problems, [str(problem) for problem in report.problems]
    assert count == times == len(record["images"])
    assert count * each == together
    merge = 2**2
    tokens = [int(grid.prod()) // merge for grid in run.samples("train")[0].image_grid_thw]
    assert tokens == [each] * count
