"""Which packages Triptych needs, which releases of them its tests passed with, and what is installed."""

from __future__ import annotations

import shlex
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

NOT_INSTALLED = "not installed"


def needed() -> list[Requirement]:
    """What the installed package itself says that it needs, extras aside; empty where it is not installed."""
    try:
        found = [Requirement(text) for text in requires("triptych") or ()]
    except PackageNotFoundError:
        return []
    return [requirement for requirement in found if requirement.marker is None]


def installed(name: str) -> str:
    """The version of a package, or ``not installed``."""
    try:
        return version(name)
    except PackageNotFoundError:
        return NOT_INSTALLED


def untried() -> list[str]:
    """A sentence for each installed package outside the range that the tests passed with."""
    return [f"{found.name} {installed(found.name)} (tried: {found.specifier})" for found in _outside()]


def untried_line() -> str | None:
    """One line that names every package outside its tried range and the remedy; None if there is none."""
    outside = _outside()
    if not outside:
        return None
    remedy = " ".join(shlex.quote(f"{found.name}{found.specifier}") for found in outside)
    return f"not tried with Triptych: {', '.join(untried())}; if something fails: pip install {remedy}"


def _outside() -> list[Requirement]:
    return [
        requirement
        for requirement in needed()
        if (have := installed(requirement.name)) != NOT_INSTALLED
        and not requirement.specifier.contains(have, prereleases=True)
    ]
