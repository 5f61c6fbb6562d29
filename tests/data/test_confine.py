"""``confine`` holds at the moment of opening: whatever links are put in the way of a path meanwhile."""

from __future__ import annotations

import json
import os
import random
import threading
from pathlib import Path

import pytest

import tiny
from triptych.corpus.corpus import Corpus
from triptych.corpus.execution.executor import LocalEngine
from triptych.corpus.loading import load_or_build
from triptych.images import identity, measure
from triptych.images.identity import Rules
from triptych.images.measure import ImageError
from triptych.images.pixels import load_rgb
from triptych.sources.access import beneath, guarded
from triptych.sources.access.guarded import OutsideError
from triptych.sources.records import ImageRef, Source

CONFINED = Rules(confine=True)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A media folder with images, and one outside of it with a secret of another size."""
    inside, outside = tmp_path / "media", tmp_path / "secret"
    for name in ("a.png", "sub/b.png", "sub/deep/c.png"):
        tiny.write_image(inside / name, 40, 40)
        tiny.write_image(outside / name, 60, 60)
    return inside, outside


def locate(name: str, root: Path) -> str:
    return identity.locate(ImageRef(name), str(root), CONFINED)


def code(location: str) -> str:
    with pytest.raises(ImageError) as caught:
        load_rgb(location)
    return caught.value.code


def test_a_link_that_is_put_there_after_the_check_is_not_followed(folders: tuple[Path, Path]) -> None:
    inside, outside = folders
    names = ("a.png", "sub/b.png", "sub/deep/c.png")
    places = {name: locate(name, inside) for name in names}
    for name in names:
        assert load_rgb(places[name]).size == (40, 40)
    (inside / "a.png").unlink()
    (inside / "a.png").symlink_to(outside / "a.png")
    (inside / "sub").rename(inside / "old")
    (inside / "sub").symlink_to(outside / "sub")
    for name in names:
        assert code(places[name]) == "image-outside", name
        assert code(locate(name, inside)) == "image-outside", f"{name}, checked again"
    (inside / "sub").unlink()
    (inside / "sub").symlink_to(inside / "old")
    (inside / "linked.png").symlink_to("old/b.png")
    for name in ("sub/b.png", "sub/deep/c.png", "linked.png", "sub/../old/b.png", str(inside / "old/b.png")):
        assert load_rgb(locate(name, inside)).size == (40, 40), f"{name} stays inside"
    alias = inside.parent / "alias"
    alias.symlink_to(inside)
    assert load_rgb(locate("old/b.png", alias)).size == (40, 40), "the folder itself may be a link"


@pytest.mark.parametrize("walks", [True, False], ids=["descriptors", "without them"])
def test_links_swapped_all_the_time_never_lead_outside(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, walks: bool
) -> None:
    if walks and not beneath.WALKS:
        pytest.skip("this system opens no file relative to a folder")
    monkeypatch.setattr(beneath, "WALKS", walks)
    inside, outside = folders
    (inside / "sub").rename(inside / "real")
    (inside / "sub").symlink_to(inside / "real")
    place, stop, chance = inside / "sub" / "b.png", threading.Event(), random.Random(0)

    def swap() -> None:
        while not stop.is_set():
            for target in (outside / "sub", inside / "real"):
                (inside / "new").symlink_to(target)
                os.replace(inside / "new", inside / "sub")
                if chance.random() < 0.1:
                    stop.wait(0.0005)

    swapper = threading.Thread(target=swap)
    swapper.start()
    secret, inner, refused = (outside / "sub/b.png").read_bytes(), (inside / "real/b.png").read_bytes(), 0
    opened = 0
    try:
        for _ in range(3000):
            try:
                with beneath.open_regular(str(place), str(inside)) as file:
                    content = file.read()
            except (OutsideError, FileNotFoundError):
                refused += 1
                continue
            assert content != secret
            assert content == inner
            opened += 1
    finally:
        stop.set()
        swapper.join()
    assert opened
    assert refused


def test_what_is_no_regular_file_is_refused_and_never_waited_for(folders: tuple[Path, Path]) -> None:
    inside, _ = folders
    os.mkfifo(inside / "pipe.png")
    (inside / "null.png").symlink_to("/dev/null")
    for rules in (CONFINED, Rules()):
        for name, expected in {"pipe.png": "image-unreadable", "sub": "image-missing"}.items():
            assert code(identity.locate(ImageRef(name), str(inside), rules)) == expected, (name, rules)
        assert code(identity.locate(ImageRef("a\0.png"), str(inside), rules)) == "image-missing"
    assert code(identity.locate(ImageRef("null.png"), str(inside), Rules())) == "image-unreadable"
    assert code(locate("null.png", inside)) == "image-outside"


def test_a_swapped_link_is_named_in_a_corpus_and_its_size_is_not_kept(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    inside, outside = folders
    data = tmp_path / "data.json"
    data.write_text(json.dumps([tiny.record([name], "<image>?", "yes") for name in ("a.png", "sub/b.png")]))

    def load(*, confine: bool) -> tuple[Corpus, list[str]]:
        source = Source(str(data), media_dir=str(inside), confine=confine)
        corpus, report = load_or_build([source], None, tmp_path / "cache", LocalEngine(1))
        return corpus, [problem.code for problem in report.problems]

    corpus, problems = load(confine=True)
    assert problems == []
    assert all(guarded.path_of(location).startswith(str(inside)) for location in _locations(corpus))
    (inside / "a.png").unlink()
    (inside / "a.png").symlink_to(outside / "a.png")
    assert load(confine=True)[1] == ["image-outside"]
    assert load(confine=False)[1] == []
    assert load(confine=True)[1] == ["image-outside"]
    assert measure.measure(identity.locate(ImageRef("a.png"), str(inside), Rules())).height == 60


def _locations(corpus: Corpus) -> list[str]:
    return [image.location for index in range(len(corpus)) for image in corpus.images(index)]
