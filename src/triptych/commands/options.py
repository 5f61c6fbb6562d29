"""Options that say how data files are read: what a source of a run file holds, for commands that take data files."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from triptych.errors import ConfigError

if TYPE_CHECKING:
    from triptych.sources.records import Source

Names = list[str] | None


def _option(*names: str, **about: Any) -> Any:
    return typer.Option(*names, rich_help_panel="How data files are read", **about)


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """The options as given; each field with its default and its help."""

    media_dir: Annotated[
        str | None, _option(help="Folder that relative image paths start from; default: each data file's folder.")
    ] = None
    allow_remote: Annotated[bool, _option("--allow-remote", help="Read data files and images behind URLs.")] = False
    allow_private: Annotated[
        bool, _option("--allow-private", help="Also let records name URLs of this machine and of private networks.")
    ] = False
    columns: Annotated[
        Names, _option(metavar="NAME=KEY", help="A record's key of another name: images=photos; repeat for several.")
    ] = None
    tags: Annotated[Names, _option(metavar="NAME=KEY", help="The same inside a turn: role=speaker.")] = None
    mark: Annotated[str | None, _option(metavar="TEXT", help="What stands for an image; default: <image>.")] = None
    marks: Annotated[
        Literal["inline", "first", "auto"] | None,
        _option(help="Where images belong: at their marks, all first, or first where there is no mark."),
    ] = None
    roles: Annotated[
        Literal["alternate", "merge", "keep"] | None,
        _option(help="Turns of one role in a row: an error, merged, or kept."),
    ] = None
    supervise: Annotated[
        Literal["answers", "last", "all"] | None, _option(help="What is learned: every answer, the last one, all text.")
    ] = None
    choice: Annotated[Names, _option(metavar="NAME=KEY", help="Multiple choice: options=choices, answer=right.")] = None
    ignore: Annotated[Names, _option(metavar="KEY", help="A key to leave out on purpose; repeat for several.")] = None

    def given(self) -> list[str]:
        """Names of the options that were given."""
        return [f"--{item.name.replace('_', '-')}" for item in fields(self) if getattr(self, item.name)]

    def source(self, data: Sequence[str]) -> Source:
        """Data files and globs, read in this way.

        Raises:
            ConfigError: for a name that nothing is called by.
        """
        from triptych.sources.records import Source

        rest = {
            name: getattr(self, name)
            for name in ("mark", "marks", "roles", "supervise")
            if getattr(self, name) is not None
        }
        return Source(
            tuple(data),
            self.media_dir,
            columns=_named("--columns", self.columns),
            tags=_named("--tags", self.tags),
            allow_remote=self.allow_remote or self.allow_private,
            allow_private=self.allow_private,
            choice=_named("--choice", self.choice) if self.choice else None,
            ignore=self.ignore or (),
            **rest,
        )


def takes_source(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of ``SourceOptions``, which it takes together as its argument ``source``."""
    own = inspect.signature(command, eval_str=True)
    hints = get_type_hints(SourceOptions, include_extras=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = {name: item.replace(kind=keyword) for name, item in own.parameters.items() if name != "source"}
    parameters |= {
        item.name: inspect.Parameter(item.name, keyword, default=item.default, annotation=hints[item.name])
        for item in fields(SourceOptions)
    }

    @wraps(command)
    def run(**given: Any) -> None:
        options = {item.name: given.pop(item.name) for item in fields(SourceOptions)}
        command(source=SourceOptions(**options), **given)

    run.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    run.__annotations__ = {name: item.annotation for name, item in parameters.items()}
    return run


def refuse_to_overwrite(data_files: Sequence[str], outputs: Sequence[Path]) -> None:
    """
    Raises:
        ConfigError: if a file that is to be written is one of the data files.
    """
    for path in outputs:
        if path.exists() and any(path.samefile(name) for name in data_files if os.path.exists(name)):
            raise ConfigError(f"{path} is a data file; write the result somewhere else")


def _named(option: str, texts: Names) -> dict[str, Any]:
    """``NAME=KEY`` as a mapping; a value may be a list, ``[left, right]``, and ``images`` may come several times."""
    found: dict[str, Any] = {}
    for text in texts or ():
        for name, value in _pairs(option, text):
            if name in found and name != "images":
                raise ConfigError(f"{option}: `{name}` is given twice")
            found[name] = [*_listed(found[name]), *_listed(value)] if name in found else value
    return found


def _pairs(option: str, text: str) -> list[tuple[str, Any]]:
    import yaml

    name, equals, value = text.partition("=")
    name, value = name.strip(), value.lstrip()  # `letters` may end in white space
    form = ConfigError(f"{option} {text!r}: write NAME=KEY, for example {option} {_EXAMPLES[option]}")
    try:
        if text.lstrip().startswith("{"):
            mapping = yaml.safe_load(text)
            return [(str(key), _words(item)) for key, item in mapping.items()]
        if not equals or not name or not value:
            raise form
        return [(name, _words(yaml.safe_load(value)) if value.startswith("[") else value)]
    except (yaml.YAMLError, AttributeError) as error:
        raise form from error


_EXAMPLES = {"--columns": "images=photos", "--tags": "role=speaker", "--choice": "options=choices"}


def _words(value: Any) -> Any:
    return [str(item) for item in value] if isinstance(value, list) else str(value)


def _listed(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]
