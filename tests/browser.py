"""A headless browser for the tests of pages; they are skipped where there is none. No page needs the network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
HOW = "pip install 'triptych[browser]' and a Chromium (Debian: apt install chromium) run this test"
GRAVE = ("serious", "critical")


def page_data(path: Path) -> Any:
    """What a page is drawn from."""
    return json.loads(path.read_text(encoding="utf-8").split('id="data">')[1].split("</script>")[0])


class Opened:
    """A page that is open, and what it did."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.errors: list[str] = []
        self.requests: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        page.on("request", lambda asked: self.requests.append(asked.url))

    def foreign(self, path: Path) -> list[str]:
        """Requests for anything but the file and what is in it."""
        return [url for url in self.requests if not url.startswith("data:") and url != path.absolute().as_uri()]

    def barriers(self) -> list[str]:
        """What axe-core finds that keeps people out, of serious and critical impact."""
        self.page.evaluate(_axe())
        found = self.page.evaluate("axe.run()")["violations"]
        return [f"{item['id']}: {item['nodes'][0]['html'][:200]}" for item in found if item["impact"] in GRAVE]


@contextmanager
def browser(width: int = 1200, height: int = 900, scheme: str = "light", *, axe: bool = False) -> Iterator[Opened]:
    """A new page in Chromium; skips the test without Playwright or Chromium.

    Args:
        width: of the window, px.
        height: of the window, px.
        scheme: ``light`` or ``dark``, what the reader prefers.
        axe: whether ``barriers`` will be asked for; pages forbid scripts from outside, so this lifts their policy.
    """
    sync_api = pytest.importorskip("playwright.sync_api", reason=f"no Playwright here: {HOW}")
    found = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no Chromium here: {HOW}")
    if axe and find_spec("axe_playwright_python") is None:
        pytest.skip(f"no axe-core here: {HOW}")
    size = {"width": width, "height": height}
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        try:
            yield Opened(started.new_context(viewport=size, color_scheme=scheme, bypass_csp=axe).new_page())
        finally:
            started.close()


def _axe() -> str:
    spec = find_spec("axe_playwright_python")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "axe.min.js").read_text(encoding="utf-8")
