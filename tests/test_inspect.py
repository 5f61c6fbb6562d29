"""Inspecting data: what is planted is found and nothing else, on a terminal, as JSON and in a page."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

import inspected
import tiny
from browser import browser, page_data
from inspected import Inspected
from triptych.cli import app

SHARED = "leak: shared-image"
ON_PAGE = """() => [...document.querySelectorAll(".card")].map(card => ({
  id: card.dataset.id,
  order: [...card.querySelectorAll(".turn:not(.mono)")].flatMap(turn => [...turn.childNodes].slice(1)
    .map(node => node.tagName === "FIGURE" ? Number(node.dataset.image) : node.textContent)),
  trained: [...card.querySelectorAll(".turn .y")].map(node => node.textContent).join(""),
  captions: [...card.querySelectorAll("figcaption")].map(node => node.textContent),
}))"""
"""What the cards of a page show."""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(item) for item in arguments])


@pytest.fixture(scope="module")
def planted(small_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Inspected:
    return inspected.write(tmp_path_factory.mktemp("inspected"), small_model_dir)


@pytest.fixture(scope="module")
def page(planted: Inspected) -> Path:
    path = planted.run.parent / "inspection.html"
    assert run("inspect", planted.run, "--html", path).exit_code == 1, "there are problems"
    return path


def test_all_that_is_planted_is_found_and_nothing_else(planted: Inspected) -> None:
    found = json.loads(run("inspect", planted.run, "--json").stdout)
    assert Counter(item["code"] for item in found["problems"]) == inspected.PROBLEMS
    by_split = {item["split"]: item for item in found["leaks"]}
    assert by_split["data.eval"]["samples"] == inspected.LEAKS
    assert by_split["data.train"]["samples"] == inspected.DUPLICATES
    pairs = [(item["kind"], item["sample"].rpartition(":")[2]) for item in by_split["data.eval"]["pairs"]]
    kinds = ("same-sample", "same-sample", "same-images", "same-images", *["shared-image"] * 3, "same-text")
    assert pairs == [(kind, str(number)) for number, kind in enumerate(kinds, 1)]
    assert found["all"]["records"] == 120
    assert sum(found["histograms"][0]["counts"]) == found["all"]["ok"]
    assert [row["max_pixels"] for row in found["max_pixels"]] == ["3,528", "7,056", "14,112"]
    assert all(row["memory"].endswith("GB") for row in found["max_pixels"])


def test_check_says_in_a_line_each_what_comes_twice(planted: Inspected, tmp_path: Path) -> None:
    said = run("check", planted.run).stderr
    for kind, count in inspected.LEAKS.items():
        some = f"{count} samples" if count > 1 else "1 sample"
        assert f"leak: {some} of data.eval with " in said, kind
        assert said.count(f"({kind})") == 1 + (kind in inspected.DUPLICATES), kind
    result = json.loads(run("check", planted.run, "--json").stdout)
    assert [item["samples"] for item in result["leaks"]] == [inspected.DUPLICATES, inspected.LEAKS]
    # Data files alone have no ids: only images are compared.
    bare = json.loads(run("check", planted.run.parent / "train.json", "--json").stdout)
    assert bare["leaks"] == [{"split": "data", "other": "data", "samples": {"same-images": 1, "shared-image": 1}}]
    clean = tiny.write_dataset(tmp_path, 1)
    assert "twice" not in run("check", clean).stderr


def test_the_terminal_shows_totals_histograms_and_one_sample(planted: Inspected) -> None:
    said = run("inspect", planted.run).stderr
    assert "data.train: 80 records" in said
    for name in ("images", "tokens", "image share", "trained"):
        line = next(line for line in said.splitlines() if line.startswith(f"{name:<12}"))
        assert any(block in line for block in "▁▂▃▄▅▆▇█"), line
        assert len(line) <= 80, line
    assert "3 image-missing: set `media_dir`" in said
    assert "Half and double max_pixels" in said
    shown = " ".join(run("inspect", planted.run, "--sample", 1).stderr.split())
    size = "1: 60x50 → 56x56, 4 tok"
    assert f"Number 0: <|vision_start|>[{size}]<|vision_end|>" in shown
    listed = run("inspect", planted.run, "--only", "leak").stderr
    assert "val.json:5" in listed
    assert run("inspect", planted.run, "--only", "image-missing").stderr.count("image-missing:") == 3
    tasks = run("inspect", planted.run, "--only", "task=task-1").stderr
    assert "train.json:2" in tasks


def test_what_is_not_there_is_said(planted: Inspected, small_model_dir: Path) -> None:
    data = planted.run.parent / "train.json"
    for arguments, message in (
        (["--only", "leek"], "write leak, shrunk, longest, task=NAME, or a code"),
        (["--sample", 5000], "there are samples 1 to"),
        (["--model", small_model_dir], "a run file names its model"),
        (["--html", planted.run.parent / "train.json" / "x.html"], "cannot write"),
    ):
        result = run("inspect", planted.run, *arguments)
        assert message in str(result.exception), arguments
    assert "name one with --model" in str(run("inspect", data).exception)
    assert run("inspect", data, "--model", small_model_dir).stderr.startswith("data: 80 records")


def test_images_that_look_the_same_are_found_where_asked(small_model_dir: Path, tmp_path: Path) -> None:
    records = [_shapes(tmp_path, number) for number in range(12)]
    first = tiny.Image.open(tmp_path / "3.png")
    first.resize((130, 150)).save(tmp_path / "small.jpg", quality=60)
    first.crop((7, 5, first.width - 5, first.height - 8)).save(tmp_path / "crop.png")
    held_out = [tiny.record([name], "<image>What is it?", name) for name in ("small.jpg", "crop.png", "11.png")]
    (tmp_path / "train.json").write_text(json.dumps(records[:11]))
    (tmp_path / "val.json").write_text(json.dumps(held_out))
    data = {"eval": [{"path": str(tmp_path / "val.json")}]}
    path = tiny.write_run(tmp_path, small_model_dir, tmp_path / "train.json", data=data)
    assert json.loads(run("check", path, "--json").stdout)["leaks"][1]["samples"] == {}
    near = json.loads(run("check", path, "--json", "--near").stdout)["leaks"]
    assert [item["samples"] for item in near] == [{}, {"near-image": 2}]


def _shapes(folder: Path, number: int) -> dict[str, object]:
    """A record of an image of its own, of large shapes as a photograph has."""
    import numpy as np
    from PIL import ImageDraw

    random = np.random.default_rng(number)
    made = tiny.image(220, 190, seed=number)
    draw = ImageDraw.Draw(made)
    for _ in range(8):
        x, y, w, h = random.integers(0, 150, 4).tolist()
        draw.ellipse((x, y, x + 20 + w, y + 20 + h), fill=tuple(random.integers(0, 255, 3).tolist()))
    made.save(folder / f"{number}.png")
    return tiny.record([f"{number}.png"], "<image>What is it?", f"thing {number}")


def test_the_page_holds_captions_chips_and_what_is_left_out(planted: Inspected, page: Path) -> None:
    data = page_data(page)
    cards = {card["origin"].rpartition("/")[2]: card for card in data["cards"]}
    bad = [card for card in data["cards"] if card["id"] < 0]
    assert Counter(kind for card in bad for kind in card["kinds"]) == inspected.PROBLEMS
    assert len(cards) == 120, "all of them fit"
    assert cards["val.json:5"]["pairs"] == [
        f"an image of the same bytes: {planted.run.parent / 'train.json'}:39 (image 1 here, image 1 there)"
    ]
    assert str(planted.run.parent / "val.json") + ":1" in data["exclude"]
    assert str(planted.run.parent / "val.json") + ":8" not in data["exclude"], "equal texts alone are no reason"
    assert "113 of 113 samples and 7 of 7 records with problems are here" in data["shown"]
    assert page.stat().st_size < 15_000_000


@pytest.mark.slow
def test_a_browser_shows_every_sample_as_it_is_and_filters_exactly(page: Path) -> None:
    data = page_data(page)
    with browser() as opened:
        tab = opened.page
        tab.goto(page.as_uri())
        assert tab.title().startswith("Inspection of")
        shown = {}
        for number in range(5):
            shown |= {item["id"]: item for item in tab.evaluate(ON_PAGE)}
            assert f"page {number + 1} of 5" in tab.locator("nav").inner_text()
            tab.keyboard.press("n")
        assert len(shown) == 120
        for card in data["cards"]:
            found = shown[str(card["id"])]
            parts = [part for turn in card.get("turns", ()) for part in turn["parts"]]
            wanted = [part["i"] + 1 if "i" in part else part["s"] for part in parts]
            assert found["order"] == wanted or "raw" in card, card["origin"]
            assert found["trained"] == "".join(part["s"] for part in parts if part.get("y")), card["origin"]
            words = [
                f"{number}: {image['w']}x{image['h']} → {image['rw']}x{image['rh']}, {image['tokens']} tok"
                for number, image in enumerate(card.get("images", ()), 1)
            ]
            assert found["captions"] == words, card["origin"]
        tab.locator(f'[data-value="{SHARED}"]').click()
        wanted = [card for card in data["cards"] if SHARED in [chip[0] for chip in card.get("chips", ())]]
        assert tab.locator(".card").count() == len(wanted) == 6, "three pairs"
        tab.locator(f'[data-value="{SHARED}"]').click()
        tab.keyboard.press("/")
        tab.keyboard.type("onerror=alert(1)")
        assert tab.locator(".card").count() == 1
        assert tab.title().startswith("Inspection of"), "the record's script does not run"
        assert opened.errors == []
        assert opened.foreign(page) == []


@pytest.mark.slow
def test_the_page_works_by_keyboard_and_on_a_narrow_screen(page: Path) -> None:
    with browser(width=420) as opened:
        tab = opened.page
        tab.goto(page.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") <= 420
        tab.keyboard.press("j")
        first = tab.evaluate("document.activeElement.dataset.id")
        tab.keyboard.press("j")
        assert tab.evaluate("document.activeElement.dataset.id") != first
        tab.keyboard.press("k")
        assert tab.evaluate("document.activeElement.dataset.id") == first
        tab.keyboard.press("n")
        assert "page 2 of" in tab.locator("nav").inner_text()
        tab.keyboard.press("j")
        for _ in range(4):
            tab.keyboard.press("Tab")
            if tab.evaluate("document.activeElement.closest('figure') !== null"):
                break
        tab.keyboard.press("Enter")
        assert tab.locator("dialog[open] img").count() == 2, "as stored, and as the model sees it"
        assert tab.evaluate("document.documentElement.scrollWidth") <= 420
        tab.keyboard.press("Escape")
        assert tab.locator("dialog").count() == 0
        tab.get_by_role("button", name="tokens", exact=True).first.click()
        assert tab.locator("table.tokens tbody tr").count() > 5
        assert opened.errors == []
