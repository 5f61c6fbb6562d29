"""An inspection on a terminal of 80 columns: totals, histograms in block characters, problems, leaks, one sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from triptych.errors import Problem
from triptych.inspect.gather import Gathered
from triptych.inspect.overview import Columns, Histogram, histograms, totals
from triptych.pages.cards import Card

BLOCKS = " ▁▂▃▄▅▆▇█"
Piece = tuple[str, str]
"""(text, style: ``trained``, ``markup``, ``image``, ``head`` or empty)"""
ADVICE = {
    "marker-count": "give every image its mark in the text, or write `marks: auto` in the source",
    "role-order": "end each conversation with an answer, or write `roles: merge` in the source",
    "empty-answer": "remove the record, or write its answer",
    "bad-shape": "name the keys in `columns` and `tags`, or leave some out with `ignore`",
    "image-missing": "set `media_dir` to the folder that the paths start from",
    "image-unreadable": "restore the file, or set data.on_error: skip",
    "image-extreme": "crop the image",
    "image-outside": "move the file into media_dir, or set confine: false",
    "too-long": "raise max_tokens, lower max_pixels, or set too_long: shrink",
    "sample-gone": "restore the data file",
}


def overview_lines(gathered: Gathered, found: Columns) -> Iterator[str]:
    """Totals, histograms, what the limits do, problems by code, what comes twice."""
    sums = totals(gathered, found)
    for name, item in sums["splits"].items():
        yield (
            f"{name}: {item['records']:,} records, {item['ok']:,} samples, {item['images']:,} images, "
            f"{item['tokens']:,} tokens, {item['supervised']:,} trained"
        )
    if len(gathered):
        share = 100 * sums["all"]["image_tokens"] / max(1, sums["all"]["tokens"])
        yield f"images are {share:.0f}% of all tokens"
        yield ""
        yield from (histogram_line(item) for item in histograms(found))
        yield ""
        yield from _limit_lines(gathered, found, sums["all"]["dropped"])
    yield from _problem_lines(gathered.problems)
    lines = [line for leaks in gathered.leaks for line in leaks.lines()]
    yield from lines or (["no sample comes twice, and no image is in two splits"] if len(gathered) else [])


def histogram_line(found: Histogram) -> str:
    """``tokens ▁▃█▂ 24 to 912, median 300``"""
    most = max(found.counts)
    bars = "".join(BLOCKS[-(-8 * count // most)] for count in found.counts)
    numbers = f"{found.edges[0]:,} to {found.edges[-1] - 1:,}, median {found.median:,.0f}"
    return f"{found.title:<12}{bars}  {numbers} {found.unit}"


def _limit_lines(gathered: Gathered, found: Columns, dropped: int) -> Iterator[str]:
    for text, column in (
        ("images of {:,} samples are smaller in the model than in their files", found.kept),
        ("images of {:,} samples are made smaller still to keep a budget of the sample", found.budget),
    ):
        smaller = int((column < 100).sum())
        if smaller:
            worst = int(column.argmin())
            _, corpus, index = gathered.place(worst)
            yield f"{text.format(smaller)}; most: {column[worst]}% left in {corpus.origin(index)}"
    if dropped:
        yield f"{dropped:,} samples are dropped as too long"


def _problem_lines(problems: Sequence[Problem]) -> Iterator[str]:
    codes: dict[str, list[Problem]] = {}
    for problem in problems:
        codes.setdefault(problem.code, []).append(problem)
    for code, found in sorted(codes.items(), key=lambda item: -len(item[1])):
        yield f"{len(found):,} {code}: {ADVICE[code]}"
        yield f"    first: {found[0]}"


def sample_pieces(card: Card) -> Iterator[Piece]:
    """One sample: each image at its mark, what is trained apart from the rest."""
    share = 100 * card["image_tokens"] // max(1, card["tokens"])
    yield f"{card['origin']}\n", "head"
    task = f"task {card['task']}, " if card["task"] else ""
    yield f"{task}{card['tokens']:,} tokens, {share}% images, {card['supervised']:,} trained\n", ""
    for turn in card["turns"]:
        for part in turn["parts"]:
            if "i" in part:
                yield f"[{image_words(card['images'][part['i']], part['i'] + 1)}]", "image"
            else:
                rest = f" [{part['cut']:,} more characters]" if "cut" in part else ""
                yield part["s"] + rest, "trained" if part.get("y") else "markup" if part.get("m") else ""
    yield "\n", ""


def image_words(image: dict[str, int], number: int) -> str:
    """``1: 640x480 → 476x364, 221 tok``"""
    return f"{number}: {image['w']}x{image['h']} → {image['rw']}x{image['rh']}, {image['tokens']:,} tok"
