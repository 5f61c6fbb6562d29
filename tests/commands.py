"""Commands as a user types them, in this process: exit code, standard output and standard error."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from triptych import cli


def said(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    """Exit code of ``triptych ARGUMENTS`` and all that it wrote, in one line of words."""
    capsys.readouterr()
    before = sys.argv
    sys.argv = ["triptych", *map(str, arguments)]
    code: int | str | None = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.argv = before
    written = capsys.readouterr()
    return int(code or 0), " ".join((written.out + written.err).split())
