"""A headless browser for the tests of pages; they are skipped where there is none. No page needs the network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


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


@contextmanager
def browser(width: int = 1200, height: int = 900) -> Iterator[Opened]:
    """A new page in Chromium; skips the test without Playwright or Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api")
    found = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium here")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        try:
            yield Opened(started.new_page(viewport={"width": width, "height": height}))
        finally:
            started.close()
