"""``triptych eval``: answer held-out samples, compare with the recorded answers, show both beside the images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from triptych.errors import printable_json
from triptych.inference.answering import predict
from triptych.inference.eval_page import write_page
from triptych.inference.judging import Judge, make_judge
from triptych.inference.predictions import Evaluation, Score, score, score_by
from triptych.model.device import choose_device
from triptych.model.loading import choose_precision
from triptych.model.trained import load_trained, quiet_loading
from triptych.pages.page import write_whole
from triptych.run.prepare import Prepared, is_main_process
from triptych.run.reporter import Reporter
from triptych.run.settings import RunSettings

PREDICTIONS, SCORES, PAGE, COMPARISON = "predictions.jsonl", "scores.json", "index.html", "compare.html"
MOST_GROUPS = 24
"""Values of a field whose scores are printed."""


def evaluate(settings: RunSettings, prepared: Prepared, folder: Path, out: Reporter) -> Evaluation:
    """Answer the eval samples with the model in ``folder`` and write the answers, the scores and a page.

    Raises:
        ConfigError: if a scorer cannot be used.
        ModelError: if the model cannot be loaded.
        DataError: under ``data.on_error: stop``, if an image that was fine no longer decodes.
    """
    return evaluate_all(settings, prepared, [folder], out)[0]


@quiet_loading()
def evaluate_all(settings: RunSettings, prepared: Prepared, folders: Sequence[Path], out: Reporter) -> list[Evaluation]:
    """Answer the eval samples with each model; of several, also write a page that compares them.

    Under a launcher (``accelerate launch``, ``torchrun``) ranks share the samples, and all get all answers.

    Raises:
        ConfigError: if a scorer cannot be used.
        ModelError: if a model cannot be loaded.
        DataError: under ``data.on_error: stop``, if an image that was fine no longer decodes.
    """
    judge = make_judge(settings.eval)
    names = model_names(folders)
    target = Path(settings.output) / "eval"
    found = []
    for name, folder in zip(names, folders, strict=True):
        evaluation = _answered(settings, prepared, folder, judge, out)
        found.append(replace(evaluation, folder=target / name))
        if is_main_process():
            _write(found[-1], prepared, str(folder), out)
    if len(folders) > 1 and is_main_process():
        write_page(target / COMPARISON, "Answers of " + ", ".join(names), names, found, prepared)
        _print_means(names, found, out)
        out.line(f"comparison: {target / COMPARISON}")
    return found


def model_names(folders: Sequence[Path]) -> list[str]:
    """A short name for each folder, no two the same: its last part, or as many as tell it from the others."""
    parts = [folder.absolute().parts for folder in folders]
    longest = max(map(len, parts), default=1)
    for count in range(1, longest + 1):
        names = ["-".join(part.strip("/") for part in item[-count:]) for item in parts]
        if len(set(names)) == len(set(parts)):
            break
    return [name if name not in names[:number] else f"{name}-{number + 1}" for number, name in enumerate(names)]


def _answered(settings: RunSettings, prepared: Prepared, folder: Path, judge: Judge, out: Reporter) -> Evaluation:
    device = choose_device()
    model = load_trained(settings.model, folder, choose_precision(settings.model))
    model.to(device)  # type: ignore[arg-type]  # decorated without its types in transformers
    model.train(False)
    predictions = predict(settings, prepared, model, out, judge)
    by = {name: score_by(predictions, name) for name in judge.fields}
    return Evaluation(score(predictions), predictions, folder, by)


def _write(evaluation: Evaluation, prepared: Prepared, title: str, out: Reporter) -> None:
    target = evaluation.folder
    dumped = (json.dumps(asdict(item), ensure_ascii=False) for item in evaluation.predictions)
    write_whole(target / PREDICTIONS, "".join(printable_json(line) + "\n" for line in dumped))
    summary: dict[str, object] = {name: _plain(value) for name, value in evaluation.scores.items()}
    if evaluation.by:
        summary["by"] = {
            name: {value: _plain(found) for value, found in groups.items()} for name, groups in evaluation.by.items()
        }
    write_whole(target / SCORES, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    write_page(target / PAGE, f"Answers of {title}", [target.name], [evaluation], prepared)
    _print(evaluation, title, out)
    out.line(f"answers: {target / PREDICTIONS}\npage: {target / PAGE}")


def _plain(value: Score) -> dict[str, object]:
    return {**asdict(value), "exact_match": value.exact_match}


def _print(evaluation: Evaluation, title: str, out: Reporter) -> None:
    for name, groups in ({"task": evaluation.scores} | evaluation.by).items():
        largest = sorted(groups, key=lambda group: -groups[group].samples)[:MOST_GROUPS]
        rows = [row for group, value in groups.items() if group in largest for row in _rows(group, value)]
        out.table(f"Scores of {title}", (name, "scorer", "samples", "score", "95% interval"), rows)
        if len(largest) < len(groups):
            out.line(f"and {len(groups) - len(largest):,} smaller groups of {name}; {SCORES} holds all")


def _rows(group: str, value: Score) -> list[tuple[str, ...]]:
    return [
        (group, name, f"{found.count:,}", f"{found.value:.1%}", f"{found.low:.1%} to {found.high:.1%}")
        for name, found in value.means.items()
    ]


def _print_means(names: Sequence[str], found: Sequence[Evaluation], out: Reporter) -> None:
    """All models side by side, by the first scorer of each task."""
    rows = []
    for task in dict.fromkeys(task for evaluation in found for task in evaluation.scores):
        cells = [_first_mean(evaluation.scores.get(task)) for evaluation in found]
        rows.append((task, *cells))
    out.table("Scores of all models", ("task", *names), rows)


def _first_mean(value: Score | None) -> str:
    if value is None or not value.means:
        return "-"
    return f"{next(iter(value.means.values())).value:.1%}"
