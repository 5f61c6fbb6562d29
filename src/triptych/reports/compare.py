"""Several runs on one page: curves over each other, the settings that differ, the same samples side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from triptych.compat.loading import open_run
from triptych.errors import ConfigError
from triptych.pages import page
from triptych.pages.cards import Card
from triptych.reports.answers import Showing, read_origins, read_showings
from triptych.reports.history import LOG, Point, all_points, read_log, thinned
from triptych.reports.live import REPORT, shown_answer

RUN_FILE = "run.yaml"
LOWER_IS_BETTER = ("loss", "eval_loss")
MOST_RUNS = 8
"""As many as there are colours."""
ABSENT = "-"


@dataclass(frozen=True, slots=True)
class FoundRun:
    """What the output folder of a run says of it."""

    folder: Path
    name: str
    settings: dict[str, str]
    """dotted name -> value"""
    curves: dict[str, list[Point]]
    """Every number of its log, all points"""
    showings: list[Showing]
    origins: list[str]
    """Of the samples that it shows, in the order of the answers"""
    page: Mapping[str, Any]
    """What its own page was drawn from; empty if there is none"""

    @property
    def step(self) -> int:
        return max((points[-1][0] for points in self.curves.values()), default=0)

    def cards(self) -> dict[str, Card]:
        """The samples that it shows, by origin."""
        return {str(card["origin"]): card for card in self.page.get("cards", ())}


def read_runs(folders: Sequence[Path]) -> list[FoundRun]:
    """Read what runs have left so far; a run that still trains is read as it is now.

    Args:
        folders: output folders, or run files, which name theirs.

    Raises:
        ConfigError: if one is no run, is given twice, or there are more than a page can show.
    """
    found = [_output_of(folder) for folder in folders]
    twice = next((folder for place, folder in enumerate(found) if folder in found[:place]), None)
    if twice is not None:
        raise ConfigError(f"the run {twice} is given twice")
    if len(found) > MOST_RUNS:
        raise ConfigError(f"{len(found)} runs are more than can be told apart; give at most {MOST_RUNS}")
    return [_read(folder, name) for folder, name in zip(found, _names(found), strict=True)]


def _output_of(given: Path) -> Path:
    if given.is_file() and given.suffix in (".yaml", ".yml"):
        given = Path(open_run(given).settings.output)
    folder = given.resolve()
    if (folder / LOG).is_file():
        return folder
    hint = "give what `output` names in a run file, or the run file"
    inside = sorted(item.parent.name for item in folder.glob(f"*/{LOG}"))
    if inside:
        hint = f"it holds the runs {', '.join(inside[:MOST_RUNS])}"
    elif (folder.parent / LOG).is_file():
        hint = f"did you mean {given.parent}?"
    raise ConfigError(f"{given} is no output folder of a run: it has no {LOG}; {hint}")


def _names(folders: Sequence[Path]) -> list[str]:
    """As much of each path's end as tells them apart."""
    for parts in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _read(folder: Path, name: str) -> FoundRun:
    return FoundRun(
        folder,
        name,
        flat(_mapping(folder / RUN_FILE)),
        all_points(read_log(folder)),
        read_showings(folder),
        read_origins(folder),
        page.read_data(folder / REPORT),
    )


def _mapping(path: Path) -> dict[str, Any]:
    """A YAML file; empty if it is missing or holds no mapping."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def flat(content: Mapping[str, Any]) -> dict[str, str]:
    """Settings by dotted name, each value as JSON."""
    found: dict[str, str] = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            found |= {f"{key}.{name}": inner for name, inner in flat(value).items()}
        else:
            found[str(key)] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return found


def differing(runs: Sequence[FoundRun]) -> list[tuple[str, ...]]:
    """(setting, its value in each run) where they are not all equal; ``output`` always differs and is left out."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    rows = [(name, *(run.settings.get(name, ABSENT) for run in runs)) for name in names if name != "output"]
    return [row for row in rows if len(set(row[1:])) > 1]


def results(runs: Sequence[FoundRun]) -> list[tuple[str, ...]]:
    """(number, its value in each run): losses, and scores of generated answers; last and best of what is held out."""
    keys = list(dict.fromkeys(key for run in runs for key in run.curves))
    rows = [("step", *(f"{run.step:,}" for run in runs))]
    for key in keys:
        if key == "loss":
            rows.append(("loss, last", *(_value(run, key, best=False) for run in runs)))
        elif key.startswith("eval_"):
            rows.append((f"{key}, last", *(_value(run, key, best=False) for run in runs)))
            rows.append((f"{key}, best", *(_value(run, key, best=True) for run in runs)))
    return rows


def _value(run: FoundRun, key: str, *, best: bool) -> str:
    points = [(value, step) for step, value in run.curves.get(key, ()) if value is not None]
    if not points:
        return ABSENT
    if not best:
        return f"{points[-1][0]:.4g}"
    sign = -1 if key in LOWER_IS_BETTER else 1
    value, step = max(points, key=lambda point: (sign * point[0], -point[1]))
    return f"{value:.4g} at step {step:,}"


def side_by_side(runs: Sequence[FoundRun]) -> list[Card]:
    """The samples that the runs show, those of most runs first; each with the last answer of every run, or None."""
    cards: dict[str, Card] = {}
    for run in runs:
        for origin, card in run.cards().items():
            # Another expected answer means that the data changed: it is another sample.
            cards.setdefault(f"{origin}\n{card['reference']}", {**card, "answers": [None] * len(runs)})
    for number, run in enumerate(runs):
        answers = run.showings[-1].answers if run.showings else []
        of_run = run.cards()
        for origin, answer in zip(run.origins, answers, strict=False):
            if origin in of_run:
                card = of_run[origin]
                shown = shown_answer(answer, card["reference"]) | {"tokens": card["tokens"], "text": answer.text}
                cards[f"{origin}\n{card['reference']}"]["answers"][number] = shown
    return sorted(cards.values(), key=lambda card: card["answers"].count(None))


def write_comparison(path: Path, runs: Sequence[FoundRun]) -> str:
    """Write the page of these runs; returns a sentence on the samples in it.

    Raises:
        ConfigError: if it cannot be written.
    """
    cards = side_by_side(runs)
    shared = sum(None not in card["answers"] for card in cards)
    said = f"{shared} samples answered by all {len(runs)} runs, {len(cards) - shared} by some of them"
    if len(runs) == 1:
        said = f"{shared} samples"
    data = {
        "runs": [{"name": run.name, "folder": str(run.folder), "step": _showing_step(run)} for run in runs],
        "results": results(runs),
        "differ": differing(runs),
        "curves": [{key: thinned(points) for key, points in run.curves.items()} for run in runs],
        "cards": [{**card, "id": number} for number, card in enumerate(cards)],
        "factor": next((run.page["factor"] for run in runs if "factor" in run.page), 28),
        "shown": said,
    }
    try:
        page.write_page(path, f"Runs: {', '.join(run.name for run in runs)}", ["charts", "compare"], data)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error
    return said


def _showing_step(run: FoundRun) -> int | None:
    return run.showings[-1].step if run.showings else None
