"""The commands that write pages: ``triptych eval``, ``inspect`` and ``report``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
from rich.text import Text

from triptych.commands.check import Looked, what_to_look_at
from triptych.commands.options import SourceOptions
from triptych.compat.loading import open_for
from triptych.corpus.examine import Encoder
from triptych.errors import ConfigError, printable, printable_json
from triptych.family.family import read_model_files
from triptych.inspect import overview
from triptych.inspect.gather import Gathered, gather
from triptych.inspect.inspect_page import write_inspection
from triptych.inspect.selection import only
from triptych.inspect.text_view import overview_lines, sample_pieces
from triptych.inspect.what_if import HEADS, Cost, what_if
from triptych.pages.cards import sample_card
from triptych.recovery.output_folder import model_to_evaluate
from triptych.reports import compare as comparing
from triptych.run.prepare import prepare
from triptych.terminal import Terminal
from triptych.text.layout import Budget

STYLES = {"trained": "green", "markup": "dim", "image": "cyan", "head": "bold", "": ""}
MOST_LISTED = 40
"""Samples that ``--only`` lists on a terminal."""


def evaluate(run: Path, overrides: Sequence[str], checkpoints: Sequence[Path], *, base: bool) -> None:
    """Evaluate the run's final model, or these checkpoints, and the base before them where it is asked for.

    Raises:
        ConfigError: if a folder or a scorer is not there.
        DataError: with all problems, under ``data.on_error: stop``.
        ModelError: if a model cannot be loaded.
    """
    out = Terminal()
    settings = open_for(run, overrides, out).settings
    folders = [model_to_evaluate(settings, checkpoint) for checkpoint in checkpoints or (None,)]
    prepared = prepare(settings, ("eval",), out, rejected=False)
    if base:
        folders.insert(0, prepared.files.folder)
    from triptych.inference.evaluate import evaluate_all

    evaluate_all(settings, prepared, folders, out)


def report(runs: Sequence[Path], html: Path, *, as_json: bool) -> None:
    """Compare runs: their results and the settings that differ on the terminal, curves and answers on a page.

    Raises:
        ConfigError: if one is no run, or the page cannot be written.
    """
    out = Terminal()
    found = comparing.read_runs(runs)
    names = [run.name for run in found]
    results, differ = comparing.results(found), comparing.differing(found)
    if as_json:
        tables = {"results": results, "settings": differ}
        _write_json({"runs": names, **tables})
    else:
        out.table("Results", ("", *names), results)
        if differ:
            out.table("Settings that differ", ("setting", *names), differ)
        elif len(found) > 1:
            out.line("no setting differs")
    out.line(f"page: {html}: {comparing.write_comparison(html, found)}")


@dataclass(frozen=True, slots=True)
class InspectOptions:
    """What ``triptych inspect`` is asked beside the data."""

    model: str | None = None
    """Of bare data files"""
    html: Path | None = None
    only: str | None = None
    sample: int | None = None
    """Counted from 1 over all splits"""
    near: bool = False
    as_json: bool = False


def inspect(arguments: Sequence[str], source: SourceOptions, options: InspectOptions) -> int:
    """Look at a run's data, or at data files as a model reads them, on the terminal or as a page.

    Returns:
        The exit status: 1 if a record has a problem.

    Raises:
        ConfigError: if a file, a sample or a kind is not there.
        ModelError: if the model folder cannot be used.
    """
    out = Terminal()
    looked = what_to_look_at(arguments, source, out)
    title = ", ".join(Path(name).name for name in arguments if "=" not in name)
    encoder = _encoder(looked, options.model)
    gathered = gather(title, looked.splits, encoder, out, near=options.near, settings=looked.settings)
    found = overview.columns(gathered)
    if options.only is not None:
        only(options.only, gathered, found)  # refuses what is no kind
    if options.sample is not None:
        _show_sample(gathered, options.sample, out)
        return 0
    costs: list[Cost] = []
    if looked.settings is not None and looked.files is not None and len(gathered):
        costs = what_if(looked.settings, looked.files, out)
    if options.as_json:
        _print_json(gathered, found, costs)
    elif options.only is not None and options.html is None:
        _list_only(options.only, gathered, found, out)
    elif options.html is None:
        for line in overview_lines(gathered, found):
            out.line(line)
        if costs:
            out.table("Half and double max_pixels", HEADS, [cost.row() for cost in costs])
    if options.html is not None:
        shown = write_inspection(options.html, gathered, found, costs, options.only)
        out.line(f"page: {options.html}: {shown}")
    return 1 if any(report.problems for report in gathered.reports.values()) else 0


def _encoder(looked: Looked, model: str | None) -> Encoder:
    if looked.encoder is not None:
        if model is not None:
            raise ConfigError("--model goes with data files; a run file names its model")
        return looked.encoder
    if model is None:
        raise ConfigError("tokens are counted as a model counts them: name one with --model, or give a run file")
    files = read_model_files(model)
    return Encoder(files.template(), files.geometry, Budget(), files.text_hash())


def _show_sample(gathered: Gathered, number: int, out: Terminal) -> None:
    try:
        split, corpus, index = gathered.place(number - 1)
    except IndexError as error:
        raise ConfigError(f"--sample {number}: there are samples 1 to {len(gathered):,}") from error
    text = Text()
    for piece, style in sample_pieces(sample_card(corpus, gathered.encoder.template, index, source=split, ids=False)):
        text.append(printable(piece, lines=True), STYLES[style])
    out.show(text)


def _list_only(kind: str, gathered: Gathered, found: overview.Columns, out: Terminal) -> None:
    problems = [problem for problem in gathered.problems if problem.code == kind]
    for problem in problems[:MOST_LISTED]:
        out.line(str(problem))
    fits = only(kind, gathered, found)
    numbers = [number for number in range(len(gathered)) if fits(number)]
    rows = []
    for number in numbers[:MOST_LISTED]:
        _, corpus, index = gathered.place(number)
        values = (found.images[number], found.tokens[number], found.kept[number])
        rows.append((str(corpus.origin(index)), str(number + 1), *(f"{value:,}" for value in values)))
    if rows:
        out.table(f"Samples: {kind}", ("sample", "--sample", "images", "tokens", "% of pixels"), rows)
    left = len(problems) + len(numbers) - min(len(problems), MOST_LISTED) - len(rows)
    out.line(
        f"{len(problems) + len(numbers):,} of this kind"
        + (f"; --html shows more than these, {left:,} are left out" if left else "")
    )


def _print_json(gathered: Gathered, found: overview.Columns, costs: Sequence[Cost]) -> None:
    result = {
        **overview.totals(gathered, found),
        "histograms": [item.as_dict() for item in overview.histograms(found)],
        "problems": [problem.to_dict() for problem in gathered.problems],
        "leaks": [
            item.as_dict()
            | {
                "pairs": [
                    {
                        "kind": pair.kind,
                        "sample": str(gathered.corpora[item.split].origin(pair.sample)),
                        "other": str(gathered.corpora[item.other].origin(pair.other)),
                    }
                    for pair in item.pairs
                ]
            }
            for item in gathered.leaks
        ],
        "max_pixels": [dict(zip(HEADS, cost.row(), strict=True)) for cost in costs],
    }
    _write_json(result)


def _write_json(result: object) -> None:
    sys.stdout.buffer.write(printable_json(orjson.dumps(result).decode()).encode() + b"\n")
    sys.stdout.flush()
