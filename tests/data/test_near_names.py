"""A path that names no file: the message names the file that exists, or the folder in which the names are found."""

import json
import os
import unicodedata
from pathlib import Path

import pytest

import tiny
from triptych.corpus.examine import CheckReport
from triptych.corpus.loading import load_or_build
from triptych.images import identity, measure
from triptych.images.measure import ImageError
from triptych.run.reporter import report_line
from triptych.sources.records import ImageRef, Source
from triptych.terminal import Terminal

NFD = unicodedata.normalize("NFD", "Café.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("near")
    for name in ("a.png", "sub dir/my image.png", "imgs/B.PNG", "imgs/b%20c.png", NFD, "photo.jpeg"):
        tiny.write_image(root / name, 40, 50)
    os.symlink("nowhere.png", root / "link.png")
    return root


def problem(folder: Path, name: str) -> str:
    location = identity.locate(ImageRef(name), str(folder), identity.Rules())
    with pytest.raises(ImageError) as caught:
        measure.measure(location)
    assert caught.value.code == "image-missing"
    return caught.value.message


@pytest.mark.parametrize(
    ("name", "file", "difference"),
    [
        ("sub%20dir/my%20image.png", "sub dir/my image.png", "percent-encoded; write it decoded"),
        ("sub dir%2Fmy image.png", "sub dir/my image.png", "percent-encoded"),
        ("imgs/b c.png", "imgs/b%20c.png", "on disk is percent-encoded"),
        ("sub dir\\my image.png", "sub dir/my image.png", "backslashes"),
        ("SUB DIR\\My Image.png", "sub dir/my image.png", "differs in case"),
        ("A.png", "a.png", "upper and lower case"),
        ("IMGS/b.png", "imgs/B.PNG", "upper and lower case"),
        ("Café.png", NFD, "another Unicode form (NFD)"),
        ("a.png ", "a.png", "white space"),
        ("a.png\n", "a.png", "white space"),
        ("a.png?x=1", "a.png", "query"),
        ("a.jpg", "a.png", "another ending"),
        ("a", "a.png", "another ending"),
        ("photo.JPG", "photo.jpeg", "another ending"),
    ],
)
def test_the_file_that_exists_is_named_and_how_it_differs(folder: Path, name: str, file: str, difference: str) -> None:
    message = problem(folder, name)
    assert repr(str(folder / file)) in message
    assert difference in message


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("~/a.png", "`~` is not expanded"),
        ("$HOME/a.png", "variables are not expanded"),
        ("C:\\data\\x.png", "Windows drive"),
        ("file:///C:/data/x.png", "Windows drive"),
        ("b'iVBORw0KGgoAAAANSUhEUgAAADgAAAA4='", "Python's way to print bytes"),
        ("QUJD" * 60, "needs data:image/png;base64,"),
        ("QUJD" * 4000, "needs data:image/png;base64,"),
        ("link.png", "a link to 'nowhere.png'"),
        ("no/such/file.png", "fix the path or media_dir"),
    ],
)
def test_a_path_without_any_near_file_says_what_is_odd(folder: Path, name: str, said: str) -> None:
    assert said in problem(folder, name)


def test_a_home_folder_and_a_variable_are_looked_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("MEDIA", str(folder / "imgs"))
    assert repr(str(folder / "a.png")) in problem(folder / "imgs", "~/a.png")
    assert repr(str(folder / "imgs/B.PNG")) in problem(folder, "$MEDIA/B.PNG")


@pytest.mark.parametrize(
    "name", ["\0", "a\0.png", "/", "//", "..", "x" * 300, "a/" * 400, "\ud800.png", "%00", "%", "~", "$"]
)
def test_no_name_crashes(folder: Path, name: str) -> None:
    location = identity.locate(ImageRef(name), str(folder), identity.Rules())
    with pytest.raises(ImageError):
        measure.measure(location)


@pytest.mark.parametrize("form", ["file:{}", "file://{}", "file://localhost{}", "file:///{}"])
def test_every_form_of_a_file_address_is_read(folder: Path, form: str) -> None:
    location = identity.locate(ImageRef(form.format(folder / "a.png")), "/", identity.Rules())
    assert measure.measure(location).height == 40


def report(data: Path, names: list[str], media_dir: Path | None = None) -> CheckReport:
    records = [tiny.record([name, name], "<image><image>x", "y") for name in names]
    data.parent.mkdir(parents=True, exist_ok=True)
    data.write_text(json.dumps(records))
    return load_or_build([Source(str(data), media_dir and str(media_dir))], None, data.parent / ".cache")[1]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for number in range(30):
        tiny.write_image(tmp_path / "data" / "images" / "set" / f"{number}.png", 40, 50)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("prefix", "media_dir", "hint"),
    [
        (
            "",
            "data",
            "30 images missing under data; the same names exist in data/images/set: try --media-dir data/images/set",
        ),
        ("set/", None, "the same names exist in data/images: try --media-dir data/images"),
        ("images/set/", "data/images", "the same names exist in data: try --media-dir data"),
        ("data/images/set/", None, "the same names exist in .: try --media-dir ."),
        ("/content/drive/set/", None, "exist in data/images without '/content/drive/' in front"),
        ("C:\\old\\images\\set\\", None, "exist in data without 'C:/old/' in front"),
    ],
)
def test_many_missing_images_are_diagnosed_together(work: Path, prefix: str, media_dir: str | None, hint: str) -> None:
    names = [f"{prefix}{number}.png" for number in range(30)]
    found = report(work / "data" / "train.json", names, media_dir and work / media_dir)
    assert len(found.problems) == 60
    (said,) = found.hints
    assert hint in said


def test_images_that_are_nowhere_get_no_hint(work: Path) -> None:
    assert report(work / "data" / "train.json", [f"gone-{number}.png" for number in range(30)]).hints == []


def test_a_hint_does_not_outlive_the_files_it_names(work: Path) -> None:
    names = [f"{number}.png" for number in range(30)]
    data = work / "data" / "train.json"
    assert report(data, names).hints
    (work / "data" / "images" / "set").rename(work / "data" / ".hidden")
    assert report(data, names).hints == []


def test_three_thousand_records_with_a_wrong_folder_are_told_in_few_lines(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"{number % 30}.png" for number in range(3000)]
    found = report(work / "data" / "train.json", names, work / "data")
    out = Terminal()
    out.problems(found)
    out.line(report_line(found))
    text = capsys.readouterr().err
    lines = text.splitlines()
    assert len(lines) <= 15
    assert "... and 5,995 more image-missing; `triptych check --all` lists them" in lines
    assert "try --media-dir data/images/set" in text
    assert "6,000 problems (6,000 image-missing)" in lines[-1]


def test_names_in_another_case_bring_no_hint_about_folders(tmp_path: Path) -> None:
    for number in range(4):
        tiny.write_image(tmp_path / "data" / "images" / f"{number}.png", 40, 50)
    names = ["Images/0.png", "images/1.png", "images/2.png", "images/lost.png"]
    found = report(tmp_path / "data" / "train.json", names)
    assert [problem.code for problem in found.problems] == ["image-missing"] * 4
    assert found.hints == []
