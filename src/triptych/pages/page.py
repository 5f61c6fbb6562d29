"""One HTML file from data, styles and scripts: nothing is fetched, and data can never become markup or script."""

from __future__ import annotations

import html
import json
import os
import tempfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

# Only what is in the file itself; a live page also loads its data file beside it.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_DATA = '<script type="application/json" id="data">'
_POLICY_LIVE = f"{_POLICY} 'self' file:"


def write_page(path: Path, title: str, scripts: Sequence[str], data: Any, *, live: bool = False) -> None:
    """Write the page whole or not at all.

    Args:
        path: file to write; its folder is made.
        title: of the page.
        scripts: names in ``assets/pages`` after ``cards`` and ``list``, in order; the last one draws the page.
        data: what the last script gets, as JSON.
        live: whether the page loads a script beside it.

    Raises:
        OSError: if it cannot be written.
    """
    write_whole(path, page(title, scripts, data, live=live))


def page(title: str, scripts: Sequence[str], data: Any, *, live: bool = False) -> str:
    """The text of a page; see ``write_page``."""
    code = "\n".join(_asset(f"{name}.js") for name in ("cards", "list", *scripts))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY_LIVE if live else _POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>
{_asset("page.css")}</style>
</head>
<body>
<header><h1>{html.escape(title)}</h1></header>
<main id="main"><noscript>This page needs JavaScript; it runs from this file and fetches nothing.</noscript></main>
{_DATA}{embedded(data)}</script>
<script>
"use strict";
{code}
</script>
</body>
</html>
"""


def embedded(data: Any) -> str:
    """JSON that is safe inside a script element: no ``<`` stands in it, and no line separator."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    safe = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return safe.encode("utf-8", "backslashreplace").decode()  # a lone surrogate of JSON data is no UTF-8


def read_data(path: Path) -> dict[str, Any]:
    """What a page that was written here is drawn from; empty if it is missing or no such page."""
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text.split(_DATA, 1)[1].split("</script>", 1)[0])
    except (OSError, ValueError, IndexError):
        return {}
    return found if isinstance(found, dict) else {}


def write_whole(path: Path, text: str) -> None:
    """Write a file beside ``path``, then let it take its place: readers see the old or the new one.

    Raises:
        OSError: if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _asset(name: str) -> str:
    return files("triptych").joinpath("assets", "pages", name).read_text(encoding="utf-8")
