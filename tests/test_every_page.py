"""What holds for every page: nothing from outside, no error, no barrier, readable on a phone, usable by keyboard."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from typer.testing import CliRunner

import inspected
from browser import browser, page_data
from triptych.cli import app
from triptych.inference.evaluate import evaluate_all
from triptych.recovery.start import starting
from triptych.run.prepare import prepare
from triptych.run.run_file import load
from triptych.terminal import Terminal
from triptych.training.train import train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
NAMES = ("inspection", "report", "comparison", "answers", "answers-compared")
CONTROLS = """() => [...document.querySelectorAll("button, select, input, summary, a[href], [tabindex='0']")]
  .filter(item => !item.disabled && item.checkVisibility()).length"""
"""What can be used on a page."""
NEXT = """() => {
  window.reached = window.reached || new Set();
  const item = document.activeElement;
  if (item !== document.body) window.reached.add(item);
  return window.reached.size;
}"""
"""How many elements the Tab key has reached."""
SHORT = [
    *("train.epochs=1", "train.max_steps=4", "train.eval_every=2", "train.show.samples=4"),
    *("train.show.max_new_tokens=5", "eval.max_new_tokens=5"),
]


@pytest.fixture(scope="module")
def pages(small_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every kind of page, of 120 records with planted problems and leaks."""
    folder = tmp_path_factory.mktemp("pages")
    path = inspected.write(folder, small_model_dir).run
    CliRunner().invoke(app, ["inspect", str(path), "--html", str(folder / "inspection.html")])
    settings, out = load(path, [*SHORT, "train.save_every=null"]), Terminal()
    with starting(settings, out) as (resolved, prepared, start):
        final = train(resolved, prepared, out, start=start)
    evaluate_all(settings, prepare(settings, ("eval",), out), [small_model_dir, final], out)
    other = folder / "other"
    shutil.copytree(final.parent, other, ignore=shutil.ignore_patterns("final", "eval"))
    made = CliRunner().invoke(app, ["report", str(final.parent), str(other), "--html", str(folder / "comparison.html")])
    assert made.exit_code == 0, made.exception
    evaluated = final.parent / "eval"
    paths = [folder / "inspection.html", final.parent / "report.html", folder / "comparison.html"]
    paths += [evaluated / "final" / "index.html", evaluated / "compare.html"]
    return dict(zip(NAMES, paths, strict=True))


def test_nothing_comes_from_outside_and_nothing_fails_also_on_a_phone(pages: dict[str, Path]) -> None:
    for name, path in pages.items():
        for width in (1200, 420):
            with browser(width=width) as opened:
                opened.page.goto(path.as_uri())
                opened.page.wait_for_selector(".card")
                assert opened.page.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
                assert opened.errors == [], (name, width)
                beside = [url for url in opened.foreign(path) if "/report-data.js?" not in url]
                assert beside == [], (name, width)


def test_axe_finds_no_barrier(pages: dict[str, Path]) -> None:
    for name, path in pages.items():
        for scheme in ("light", "dark"):
            with browser(scheme=scheme, axe=True) as opened:
                opened.page.goto(path.as_uri())
                opened.page.wait_for_selector(".card")
                assert opened.barriers() == [], (name, scheme)


def test_the_keyboard_alone_reaches_everything(pages: dict[str, Path]) -> None:
    for name, path in pages.items():
        with browser() as opened:
            tab = opened.page
            tab.goto(path.as_uri())
            tab.wait_for_selector(".card")
            controls = tab.evaluate(CONTROLS)
            reached = 0
            for _ in range(controls):
                tab.keyboard.press("Tab")
                reached = tab.evaluate(NEXT)
            assert reached == controls > 10, name


def test_captions_and_trained_text_are_what_encode_counts_and_trains(
    pages: dict[str, Path], small_model_dir: Path
) -> None:
    folder, tokenizer = pages["inspection"].parent, Tokenizer.from_file(str(small_model_dir / "tokenizer.json"))
    encoded = {}
    for file in ("train.json", "val.json"):
        arguments = ["encode", str(folder / file), "--media-dir", str(folder), "--model", str(small_model_dir)]
        for sample in map(json.loads, CliRunner().invoke(app, arguments).stdout.splitlines()):
            encoded[sample["origin"]] = sample
    shown = [card for card in page_data(pages["inspection"])["cards"] if card["id"] >= 0]
    assert len(shown) == len(encoded) == 113
    for card in shown:
        sample = encoded[card["origin"]]
        # `encode` has no budget of a sample: that of a shrunk image is what the page says it would cost without.
        counts = [image.get("natural", image["tokens"]) for image in card["images"]]
        assert counts == [t * h * w // 4 for t, h, w in sample["image_grid_thw"]], card["origin"]
        trained = "".join(part["s"] for turn in card["turns"] for part in turn["parts"] if part.get("y"))
        labels = [label for label in sample["labels"] if label != -100]
        assert trained == tokenizer.decode(labels, skip_special_tokens=False), card["origin"]
