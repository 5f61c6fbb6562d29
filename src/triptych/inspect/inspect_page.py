"""The page of an inspection: one file with histograms that filter, problems, what comes twice, and sample cards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from triptych.errors import ConfigError, Problem
from triptych.inspect.gather import Gathered
from triptych.inspect.overview import Columns, histograms, totals
from triptych.inspect.selection import CODES, kinds, only
from triptych.inspect.text_view import ADVICE
from triptych.inspect.what_if import HEADS, Cost
from triptych.leaks.exact import KINDS, Pair
from triptych.pages import page
from triptych.pages.cards import Card, sample_card, vocabulary
from triptych.pages.strata import choose
from triptych.pages.thumbnails import add_images
from triptych.sources import readers

MOST_CARDS = 500
MOST_PROBLEMS = 250
"""Cards of records with problems; all problems are counted."""
IMAGE_BYTES = 10_000_000
"""Characters of all copies of images."""
MOST_EXCLUDED = 5_000
"""Origins in the list to exclude."""
RAW_CHARACTERS = 1_500


def write_inspection(
    path: Path, gathered: Gathered, found: Columns, costs: Sequence[Cost], kind: str | None = None
) -> str:
    """Write the page; returns a sentence on what is in it.

    Args:
        path: file to write.
        gathered: the data.
        found: its numbers.
        costs: of other ``max_pixels``; empty for bare data.
        kind: what ``--only`` names; None for some samples of every kind.

    Raises:
        ConfigError: for a kind that there is none of, or a file that cannot be written.
    """
    try:
        data = page_content(gathered, found, costs, kind)
        page.write_page(path, f"Inspection of {gathered.title}", ["charts", "inspect"], data)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error
    return str(data["shown"])


def page_content(gathered: Gathered, found: Columns, costs: Sequence[Cost], kind: str | None) -> dict[str, Any]:
    """What the page is drawn from."""
    problems = _problem_cards([item for item in gathered.problems if kind is None or item.code == kind])
    chosen = _chosen(gathered, found, kind, MOST_CARDS - len(problems))
    cards = [_card(gathered, found, number, names) for number, names in chosen.items()]
    _add_pairs(gathered, cards)
    _add_copies(gathered, cards)
    template = gathered.encoder.template
    return {
        "totals": totals(gathered, found),
        "histograms": [item.as_dict() for item in histograms(found)],
        "problems": _problem_rows(gathered.problems),
        "leaks": _leak_rows(gathered),
        "exclude": _exclude(gathered),
        "costs": {"heads": HEADS, "rows": [cost.row() for cost in costs]},
        "factor": gathered.encoder.geometry.factor,
        "vocabulary": vocabulary(template, cards),
        "cards": [*problems, *cards],
        "shown": _shown(gathered, len(cards), len(problems), kind),
    }


def _chosen(gathered: Gathered, found: Columns, kind: str | None, most: int) -> dict[int, list[str]]:
    if kind is None:
        return choose(kinds(gathered, found), len(gathered), most)
    fits = only(kind, gathered, found)
    wanted = [number for number in range(len(gathered)) if fits(number)][:most]
    groups = {name: set(samples) for name, samples in kinds(gathered, found).items()}
    return {number: [name for name, samples in groups.items() if number in samples] for number in wanted}


def _card(gathered: Gathered, found: Columns, number: int, names: Sequence[str]) -> Card:
    split, corpus, index = gathered.place(number)
    card = sample_card(corpus, gathered.encoder.template, index, source=split)
    bad = any(name.startswith("leak") and not name.endswith("same-text") for name in names)
    return card | {
        "id": number,
        "kinds": ["leak" if name.startswith("leak") else name for name in names],
        "chips": [(name, "bad" if name.startswith("leak") else "warn") for name in names if name != "random"],
        "state": "bad" if bad else "warn" if set(names) - {"random"} else "",
        "values": {
            "images": len(card["images"]),
            "tokens": card["tokens"],
            "image share": int(found.image_share[number]),
            "trained": card["supervised"],
            "kept": int(found.kept[number]),
        },
    }


def _add_pairs(gathered: Gathered, cards: Sequence[Card]) -> None:
    """Say on a card which samples it shares something with."""
    by_number = {card["id"]: card for card in cards}
    for leaks in gathered.leaks:
        corpus, other = gathered.corpora[leaks.split], gathered.corpora[leaks.other]
        for pair in leaks.pairs:
            one = gathered.firsts[leaks.split] + pair.sample
            two = gathered.firsts[leaks.other] + pair.other
            for number, text in (
                (one, _pair_words(pair, str(other.origin(pair.other)))),
                (two, _pair_words(pair, str(corpus.origin(pair.sample)), turned=True)),
            ):
                if number in by_number:
                    found = by_number[number].setdefault("pairs", [])
                    if len(found) < 5:
                        found.append(text)


def _pair_words(pair: Pair, origin: str, *, turned: bool = False) -> str:
    images = (pair.other_image, pair.image) if turned else (pair.image, pair.other_image)
    where = f" (image {images[0] + 1} here, image {images[1] + 1} there)" if pair.image >= 0 else ""
    return f"{KINDS[pair.kind]}: {origin}{where}"


def _add_copies(gathered: Gathered, cards: Sequence[Card]) -> None:
    """Copies of images, those of cards with a kind of their own in detail first."""
    pairs = []
    for card in sorted(cards, key=lambda item: item["kinds"] in ([], ["random"])):
        _, corpus, index = gathered.place(card["id"])
        pairs += list(zip(card["images"], corpus.images(index), strict=True))
    add_images(pairs, IMAGE_BYTES)


def _problem_cards(problems: Sequence[Problem]) -> list[Card]:
    """Records with problems, as their files hold them."""
    by_place: dict[readers.Place, list[Problem]] = {}
    for problem in problems:
        by_place.setdefault(readers.place(problem.origin), []).append(problem)
    groups: dict[str, list[int]] = {}
    places = list(by_place)
    for rank, place in enumerate(places):
        groups.setdefault(by_place[place][0].code, []).append(rank)
    shown = [places[rank] for rank in choose(groups, len(places), MOST_PROBLEMS)]
    records = readers.read_again(by_place[place][0].origin for place in shown if place[1])
    return [_problem_card(number, by_place[place], records.get(place)) for number, place in enumerate(shown, 1)]


def _problem_card(number: int, problems: Sequence[Problem], record: dict[str, Any] | None) -> Card:
    codes = list(dict.fromkeys(problem.code for problem in problems))
    text = "" if record is None else orjson.dumps(record, default=lambda value: f"{len(value):,} bytes").decode()
    rest = f" ... {len(text) - RAW_CHARACTERS:,} more characters" if len(text) > RAW_CHARACTERS else ""
    return {
        "id": number - MOST_PROBLEMS - 1,  # before all samples
        "origin": str(problems[0].origin),
        "kinds": codes,
        "chips": [(code, "bad") for code in codes],
        "problems": [f"{problem.code}: {problem.message}" for problem in problems],
        "state": "bad",
        "raw": text[:RAW_CHARACTERS] + rest,
        "values": {},
    }


def _problem_rows(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    counts: dict[str, list[Problem]] = {}
    for problem in problems:
        counts.setdefault(problem.code, []).append(problem)
    return [
        {"code": code, "count": len(found), "first": str(found[0]), "advice": ADVICE[code]}
        for code, found in sorted(counts.items(), key=lambda item: CODES.index(item[0]))
    ]


def _leak_rows(gathered: Gathered) -> list[dict[str, Any]]:
    rows = []
    for leaks in gathered.leaks:
        for kind, words in KINDS.items():
            if leaks.count(kind):
                within = leaks.split == leaks.other
                chip = f"leak: {'duplicate' if within else kind}"
                rows.append(
                    {"kind": kind, "words": words, "count": leaks.count(kind), "split": leaks.split, "chip": chip}
                    | {"other": leaks.other, "within": within}
                )
    return rows


def _exclude(gathered: Gathered) -> list[str]:
    """Origins of held-out samples that are trained on, and of what comes twice; equal texts alone are no reason."""
    found = []
    for leaks in gathered.leaks:
        corpus = gathered.corpora[leaks.split]
        strong = (
            ("same-sample",) if leaks.split == leaks.other else tuple(kind for kind in KINDS if kind != "same-text")
        )
        found += [str(corpus.origin(pair.sample)) for pair in leaks.pairs if pair.kind in strong]
    return list(dict.fromkeys(found))[:MOST_EXCLUDED]


def _shown(gathered: Gathered, cards: int, problems: int, kind: str | None) -> str:
    bad = len({readers.place(problem.origin) for problem in gathered.problems})
    which = "" if kind is None else f" of {kind}"
    text = f"{cards:,} of {len(gathered):,} samples{which} and {problems:,} of {bad:,} records with problems are here"
    if kind is None and (cards < len(gathered) or problems < bad):
        return f"{text}: some of every kind, the longest, the most shrunk, what comes twice, others at random"
    return text
