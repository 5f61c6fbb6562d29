"""The package stays a house: folders that can be overseen, modules that can be read in one sitting."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "triptych"


def test_folders_and_modules_are_small() -> None:
    for folder in [path for path in PACKAGE.rglob("*") if (path / "__init__.py").is_file()]:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert 3 <= len(modules) <= 9, f"{folder.name} holds {len(modules)} modules"
        assert (folder / "__init__.py").read_text(encoding="utf-8").startswith('"""'), f"{folder.name} says nothing"
    for module in PACKAGE.rglob("*.py"):
        lines = len(module.read_text(encoding="utf-8").splitlines())
        assert lines <= 400, f"{module.relative_to(PACKAGE)} has {lines} lines"
