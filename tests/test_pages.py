"""Pages: cards say what the model sees, data stays inert, a choice of samples is fair."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny
from browser import browser, page_data
from triptych.corpus.corpus import Corpus
from triptych.corpus.examine import Encoder
from triptych.corpus.loading import load_or_build
from triptych.family.family import read_model_files
from triptych.images.geometry import SizedImage
from triptych.pages import page, thumbnails
from triptych.pages.cards import prompt_card, sample_card, vocabulary
from triptych.pages.differences import word_difference
from triptych.pages.strata import choose
from triptych.sources.records import Source
from triptych.text.layout import Budget

HOSTILE = '</script><script>document.title="owned"</script><img src=x onerror=alert(1)> & "quotes" \u2028 <|im_end|>'


@pytest.fixture(scope="module")
def prepared(small_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Encoder, Corpus]:
    folder = tmp_path_factory.mktemp("pages")
    path = tiny.write_dataset(folder, 12, seed=4)
    records = json.loads(path.read_text())
    name = """images/it's "quoted" & <b>.png"""
    tiny.write_image(folder / name, 60, 90)
    parts = [{"type": "text", "text": "literal <image> and "}, {"type": "image", "image": name}]
    question = [*parts, {"type": "text", "text": HOSTILE}]
    records.append(
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": f"no {HOSTILE}"}]}
    )
    path.write_text(json.dumps(records))
    files = read_model_files(str(small_model_dir))
    encoder = Encoder(files.template(), files.geometry, Budget(image_tokens=20), files.text_hash())
    corpus, report = load_or_build([Source(str(path))], encoder)
    assert not report.problems
    return encoder, corpus


def test_a_card_holds_every_token_in_order_and_marks_what_is_trained(prepared: tuple[Encoder, Corpus]) -> None:
    encoder, corpus = prepared
    template, tokenizer = encoder.template, encoder.template.tokenizer
    for index in range(len(corpus)):
        card, sample = sample_card(corpus, template, index), corpus.sample(index)
        parts = [part for turn in card["turns"] for part in turn["parts"]]
        assert [part["i"] for part in parts if "i" in part] == list(range(len(sample.images))), index
        ids = sample.encoded.ids
        whole = "".join("<|image_pad|>" if "i" in part else part["s"] for part in parts)
        assert whole == tokenizer.decode(ids.tolist(), skip_special_tokens=False), index
        trained = "".join(part["s"] for part in parts if part.get("y"))
        labels = ids[sample.encoded.supervised].tolist()
        assert trained == tokenizer.decode(labels, skip_special_tokens=False), index
        layout = sample.layout()
        counts = [image["tokens"] for image in card["images"]]
        assert counts == (layout.grids.prod(axis=1) // 4).tolist(), index
        assert card["tokens"] == len(layout.input_ids)
        shown = card["ids"]
        position, place = 0, 0
        starts, slots = dict(shown["runs"]), dict(zip(shown["slots"], counts, strict=True))
        for number in range(len(ids)):  # as the page counts
            position = starts.get(number, position + 1)
            assert position == layout.position_ids[0, place], (index, number)
            place += slots.get(number, 1)
        assert set(shown["ids"]) <= vocabulary(template, [card]).keys()
        asked = prompt_card(corpus, template, index)
        assert [turn["role"] for turn in asked["turns"]] == [turn["role"] for turn in card["turns"]][:-1]


def test_data_in_a_page_is_never_markup_and_reads_back_equal(tmp_path: Path) -> None:
    for number, data in enumerate(([HOSTILE], {"a": "\ud800 lone"}, ["<!--<script>"], [])):
        path = tmp_path / f"{number}.html"
        page.write_page(path, HOSTILE, [], data)
        text = path.read_text(encoding="utf-8")
        assert page_data(path) == data
        assert text.count("<script") == 2, "the data and the code"
        assert "<img" not in text
    with pytest.raises(ValueError, match="JSON"):
        page.embedded(float("nan"))


def test_images_that_do_not_decode_say_so_and_details_keep_their_budget(tmp_path: Path) -> None:
    path = tiny.write_image(tmp_path / "a.png", 90, 120)
    (tmp_path / "b.png").write_bytes(b"no image")

    def sized(name: str) -> SizedImage:
        return SizedImage(name, str(tmp_path / name), 90, 120, 56, 84)

    fields: list[dict[str, str]] = [{}, {}, {}]
    thumbnails.add_images(list(zip(fields, map(sized, (path.name, "b.png", path.name)), strict=True)), 10**6)
    assert fields[0] == fields[2]
    assert set(fields[0]) == {"thumb", "stored", "model"}
    assert "is not an image" in fields[1]["error"]
    small: list[dict[str, str]] = [{}]
    thumbnails.add_images([(small[0], sized(path.name))], 10)
    assert set(small[0]) == {"thumb"}


def test_a_choice_takes_of_every_kind_and_is_the_same_every_time() -> None:
    kinds = {"problem": list(range(5)), "longest": list(range(100, 1000)), "empty": [], "both": [0, 7]}
    for most, wanted in ((6, 6), (40, 40), (2000, 1000)):
        chosen = choose(kinds, 1000, most, seed=3)
        assert len(chosen) == wanted, most
        assert list(chosen) == sorted(chosen)
        assert {0, 100} <= set(chosen), most
        assert chosen == choose(kinds, 1000, most, seed=3)
    assert chosen[0] == ["problem", "both"]
    assert chosen[50] == ["random"]
    assert len(choose({}, 1000, 40)) == 40
    assert choose({}, 0, 40) == {}


def test_differences_hold_both_texts() -> None:
    for expected, answered in (("a b c", "a c d"), ("", "x"), ("x", ""), ("两只猫", "一只猫"), ("w " * 700, "w")):
        found = word_difference(expected, answered)
        assert "".join(text for kind, text in found if kind in "=-") == expected
        assert "".join(text for kind, text in found if kind in "=+") == answered
    assert word_difference("the left cat", "the right cat") == [
        ("=", "the "),
        ("-", "left"),
        ("+", "right"),
        ("=", " cat"),
    ]


@pytest.mark.slow
def test_a_browser_draws_hostile_cards_inert(prepared: tuple[Encoder, Corpus], tmp_path: Path) -> None:
    encoder, corpus = prepared
    card = sample_card(corpus, encoder.template, len(corpus) - 1)
    path = tmp_path / "page.html"
    (tmp_path / "draw.js").write_text("")
    text = page.page("hostile", [], {"cards": [card]})
    draw = 'document.getElementById("main").append(card(pageData().cards[0], {}));'
    path.write_text(text.replace("</script>\n</body>", f"{draw}</script>\n</body>"), encoding="utf-8")
    with browser() as opened:
        opened.page.goto(path.as_uri())
        shown = opened.page.locator(".card").inner_text()
        assert opened.page.title() == "hostile"
        assert opened.errors == []
        assert opened.foreign(path) == []
        for part in ('onerror=alert(1)> & "quotes"', "literal <image> and", """it's "quoted" & <b>.png"""):
            found = shown if "png" not in part else opened.page.locator("figcaption").get_attribute("title")
            assert part in found, part
