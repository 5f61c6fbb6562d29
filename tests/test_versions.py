"""What lies outside the tried range is said at the start of a run, with the range and the remedy."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from triptych.cli import app
from triptych.errors import TriptychError
from triptych.run import versions

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture
def _project_as_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The installed package's metadata may be older than pyproject.toml; here they are the same."""
    monkeypatch.setattr(versions, "requires", lambda _: PROJECT["dependencies"])


@pytest.mark.usefixtures("_project_as_installed")
def test_what_the_tests_run_with_lies_within_the_tried_range() -> None:
    assert versions.untried_line() is None


@pytest.mark.usefixtures("_project_as_installed")
def test_a_package_outside_the_tried_range_is_named_with_range_and_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "version", lambda name: {"transformers": "99.0", "peft": "0.1"}[name])
    monkeypatch.setattr(
        versions, "requires", lambda _: ["transformers<5.25,>=5.23", "peft>=0.18", "ray; extra == 'ray'"]
    )
    assert versions.untried_line() == (
        "not tried with Triptych: transformers 99.0 (tried: <5.25,>=5.23), peft 0.1 (tried: >=0.18); "
        "if something fails: pip install 'transformers<5.25,>=5.23' 'peft>=0.18'"
    )


def test_a_copy_that_is_not_installed_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise versions.PackageNotFoundError(name)

    monkeypatch.setattr(versions, "requires", missing)
    assert versions.untried_line() is None


@pytest.mark.parametrize(
    "arguments",
    [("train", "no.yaml"), ("eval", "no.yaml"), ("export", ".", "--to", "out"), ("chat", "nowhere")],
    ids=lambda arguments: arguments[0],
)
def test_commands_say_at_their_start_what_was_not_tried(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(versions, "version", lambda name: "99.0" if name == "transformers" else "5.24.0")
    monkeypatch.setattr(versions, "requires", lambda _: ["transformers<5.25,>=5.23"])
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, TriptychError)  # what is wrong with the arguments comes after the line
    (line,) = result.stderr.splitlines()
    assert line.startswith("triptych: not tried with Triptych: transformers 99.0")
    assert "pip install 'transformers<5.25,>=5.23'" in line
