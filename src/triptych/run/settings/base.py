"""What all groups of settings share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from triptych.errors import ConfigError
from triptych.family.selectors import parse_selector


def _selector(text: str) -> str:
    parse_selector(text)
    return text


PartOrLayers = Annotated[str, AfterValidator(_selector)]
"""``vision``, ``merger``, ``language``, or layers of one as a Python slice: ``language[:20]``."""


def _switch(value: Any) -> Any:
    """YAML 1.1 reads ``on`` and ``off`` as true and false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)]


class Settings(BaseModel):
    """Base of all groups of settings: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def in_pydantic(check: Callable[[], object]) -> None:
    """Run a check whose refusal pydantic reports with the setting's place."""
    try:
        check()
    except ConfigError as error:
        raise ValueError(str(error)) from error
