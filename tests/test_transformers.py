"""docs/transformers.md is true, and what no other test would notice of transformers moving is noticed here."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import tiny
from triptych.run.run_file import load

ROOT = Path(__file__).parent.parent
PACKAGE, TESTS = ROOT / "src" / "triptych", ROOT / "tests"
PAGE = ROOT / "docs" / "transformers.md"
ROWS = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if re.match(r"\| (?!what is|-)", line)]


def imported_from_inside(path: Path) -> Iterator[str]:
    """Modules below transformers' front door that a file imports from."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name for name in names if name.startswith("transformers."))


def test_every_module_that_imports_from_inside_transformers_is_on_the_page() -> None:
    listed = set(re.findall(r"`([a-z_/]+\.py)`", PAGE.read_text(encoding="utf-8")))
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = sorted(set(imported_from_inside(path)))
        name = path.relative_to(PACKAGE).as_posix()
        assert not inside or name in listed, f"{name} imports from {', '.join(inside)}: add it to docs/transformers.md"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:50])
def test_every_place_on_the_page_exists_and_names_a_test_that_exists(row: str) -> None:
    _, where, tests = row.strip("| ").split(" | ")
    files = re.findall(r"`([a-z_/]+\.py)`", where)
    assert files
    for name in files:
        assert (PACKAGE / name).exists(), f"docs/transformers.md: {name} has moved; name its new place"
    named = re.findall(r"`([a-z_0-9/]+\.py)::(\w+)`", tests)
    assert named
    for name, function in named:
        path = TESTS / name
        assert path.exists(), f"docs/transformers.md: tests/{name} has moved; name its new place"
        text = path.read_text(encoding="utf-8")
        assert f"def {function}(" in text, f"docs/transformers.md: tests/{name} has no {function} any more"


@pytest.fixture(scope="module")
def trained(small_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a run of two steps."""
    from triptych.run.prepare import prepare
    from triptych.run.reporter import LogReporter
    from triptych.training.train import train

    folder = tmp_path_factory.mktemp("trained")
    path = tiny.write_run(folder, small_model_dir, tiny.write_dataset(folder, 4), train={"log_every": 1})
    settings = load(path)
    train(settings, prepare(settings, ("train",), LogReporter()), LogReporter())
    return Path(settings.output)


def test_a_log_line_has_what_trainer_logs(trained: Path) -> None:
    entry = json.loads((trained / "log.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert {"loss", "learning_rate", "grad_norm", "epoch", "step", "tokens_per_second"} <= entry.keys()


def test_tensorboard_is_written_beside_the_run(trained: Path) -> None:
    events = list((trained / "tensorboard").glob("events.out.tfevents.*"))
    assert events
    assert sum(event.stat().st_size for event in events) > 100
