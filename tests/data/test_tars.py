"""Tar shards in WebDataset naming, and tars as media folders, hold the samples that JSON and image files hold."""

from __future__ import annotations

import io
import json
import os
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest
from containers import Samples, write_samples

from triptych.errors import ConfigError, Problem
from triptych.images import measure
from triptych.sources.readers import read_records
from triptych.sources.records import Record

Member = tuple[str, bytes]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Samples:
    return write_samples(tmp_path_factory.mktemp("samples"), model_dir)


def write_tar(path: Path, members: list[Member], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def as_json(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode()


def shards(samples: Samples, *, named: str | None, folder: str = "") -> list[Member]:
    """Each sample's record and images under one key; ``named`` is how the record names its images, if it does."""
    members: list[Member] = []
    for number, record in enumerate(samples.records):
        key = f"{folder}{number:04}"
        names = record["images"]
        endings = [
            f"{place + 8}.{Path(name).suffix[1:]}" for place, name in enumerate(names)
        ]  # 8, 9, 10: not by letter
        kept = {key: value for key, value in record.items() if key != "images"}
        if named is not None:
            kept["images"] = [named.format(key=key, ending=ending) for ending in endings]
        pictures = [(f"{key}.{ending}", samples.content(name)) for ending, name in zip(endings, names, strict=True)]
        members += [*sorted(pictures)[:1], (f"{key}.json", as_json(kept)), *sorted(pictures)[1:]]
    return members


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("folder", ["", "./", "a/b.c/", "深/" * 60], ids=["none", "dot", "dotted", "long"])
@pytest.mark.parametrize("named", [None, "{ending}", "{key}.{ending}"], ids=["all", "ending", "name"])
def test_a_tar_holds_what_files_hold(
    samples: Samples, tmp_path: Path, named: str | None, folder: str, form: int
) -> None:
    if form == tarfile.USTAR_FORMAT and len(folder) > 100:
        folder = "deep/" * 12
    path = write_tar(tmp_path / "data.tar", shards(samples, named=named, folder=folder), form)
    corpus = samples.check_equal(tmp_path / "cache", path)
    assert [corpus.origin(index).line for index in range(len(corpus))] == list(range(1, 13)), "ordinal numbers"


def test_images_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    record = as_json({"messages": []})
    names = ["k.10.jpg", "k.json", "k.2.jpg", "k.0.PNG", "k.txt", "k.1.webp", "k.cls"]
    path = write_tar(tmp_path / "a.tar", [(name, record if name == "k.json" else b"x") for name in names])
    (found,) = read_records(str(path))
    assert isinstance(found, Record)
    assert [ref.source for ref in found.data["images"]] == ["k.0.PNG", "k.1.webp", "k.2.jpg", "k.10.jpg"]


def test_a_tar_may_be_the_media_folder(samples: Samples, tmp_path: Path) -> None:
    names = [name for record in samples.records for name in record["images"]]
    media = write_tar(tmp_path / "media.tar", [(f"./{name}", samples.content(name)) for name in names])
    samples.check_equal(tmp_path / "cache", samples.path, media_dir=str(media))

    short = write_tar(tmp_path / "short.tar", [(name, samples.content(name)) for name in names[1:]])
    _, report = samples.load(tmp_path / "cache", samples.path, media_dir=str(short))
    assert [(problem.code, problem.image) for problem in report.problems] == [("image-missing", 1)]
    assert "short.tar" in report.problems[0].message

    # What stands in front of the damage is there.
    cut = tmp_path / "cut.tar"
    cut.write_bytes(media.read_bytes()[: media.stat().st_size // 2])
    corpus, report = samples.load(tmp_path / "cache", samples.path, media_dir=str(cut))
    assert {problem.code for problem in report.problems} == {"image-unreadable"}
    assert 2 < len(corpus) < 12
    os.replace(media, cut)
    samples.check_equal(tmp_path / "cache", samples.path, media_dir=str(cut))


def test_a_tar_that_changed_is_noticed(samples: Samples, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "data.tar", shards(samples, named=None))
    samples.check_equal(tmp_path / "cache", path)
    members = shards(samples, named=None)
    last = next(number for number, (name, _) in enumerate(members) if name.startswith("0006"))
    os.replace(write_tar(tmp_path / "new.tar", members[last:]), path)
    samples.check_equal(tmp_path / "cache", path, only=list(range(6, 12)))


def test_what_is_no_sample_is_a_problem_of_its_number(tmp_path: Path, samples: Samples) -> None:
    good = next(record for record in samples.records if not record["images"])
    members = [
        ("a.json", as_json(good)),
        ("b.0.jpg", b"x"),
        ("c.json", b"{broken"),
        ("d.json", b"[1]"),
        ("e.json", as_json(good | {"images": ["0.jpg"]})),
        ("README", b""),
        ("f.json", as_json(good)),
        ("a.0.jpg", b"after other samples"),
    ]
    path = write_tar(tmp_path / "a.tar", members)
    corpus, report = samples.load(tmp_path / "cache", path)
    assert [(problem.origin.line, problem.code) for problem in report.problems] == [
        *((line, "bad-shape") for line in (2, 3, 4)),
        (5, "marker-count"),
        *((line, "bad-shape") for line in (6, 8)),
    ]
    assert [corpus.origin(index).line for index in range(len(corpus))] == [1, 7]


@pytest.mark.parametrize("content", [b"", b"x", b"x" * 512, b"[1, 2]" * 500])
def test_a_file_that_is_no_tar_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    (problem,) = read_records(str(tmp_path / "a.tar"))
    assert isinstance(problem, Problem)
    assert (problem.code, problem.origin.line) == ("bad-shape", 0)
    with pytest.raises(ConfigError, match="gone"):
        list(read_records(str(tmp_path / "gone.tar")))


def test_a_cut_tar_keeps_what_is_in_front_and_says_so(samples: Samples, tmp_path: Path) -> None:
    members = shards(samples, named=None)
    whole = write_tar(tmp_path / "whole.tar", members).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as archive:
        starts = [member.offset for member in archive]
        end = archive.offset
    all_of_it = list(read_records(str(tmp_path / "whole.tar")))
    chance = random.Random(0)
    for length in [*starts[1:], end, *(chance.randrange(512, end) for _ in range(60))]:
        path = tmp_path / "cut.tar"
        path.write_bytes(whole[:length])
        found = list(read_records(str(path)))
        assert isinstance(found[-1], Problem), length
        assert found[-1].origin.line == 0
        complete = [member for member, start in zip(members, [*starts[1:], end], strict=True) if start <= length]
        keys = [name.partition(".")[0] for name, _ in complete]
        sure = len({*keys} - {keys[-1]}) if keys else 0
        for one, other in zip(found[:sure], all_of_it, strict=False):
            assert isinstance(one, Record)
            assert isinstance(other, Record)
            assert {**one.data, "images": len(one.data.get("images", []))} == {
                **other.data,
                "images": len(other.data.get("images", [])),
            }


def test_no_damage_of_a_tar_goes_unsaid_or_raises(samples: Samples, tmp_path: Path) -> None:
    members = shards(samples, named=None)
    chance = random.Random(0)
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        good = write_tar(tmp_path / "good.tar", [("深" * 90 + ".json", b"{}"), *members], form)
        count = len(list(read_records(str(good))))
        with tarfile.open(good) as archive:
            headers = [member.offset for member in archive]
        for _ in range(250):
            content = bytearray(good.read_bytes())
            for _ in range(chance.randrange(1, 5)):
                content[chance.choice(headers) + chance.randrange(512)] = chance.choice(
                    [0, 255, 57, chance.randrange(256)]
                )
            path = tmp_path / "bad.tar"
            path.write_bytes(content)
            found = list(read_records(str(path)))
            problems = [element for element in found if isinstance(element, Problem)]
            assert len(found) >= count or problems, "a lost member is said"
            for element in found:
                for ref in element.data.get("images", []) if isinstance(element, Record) else ():
                    with measure.open_bytes(ref.location) as file:
                        file.read()


def test_a_member_name_that_is_not_utf_8_is_read_all_the_same(samples: Samples, tmp_path: Path) -> None:
    name = next(name for record in samples.records for name in record["images"])
    record = {"messages": [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "yes"}]}
    members = [("k\udcff.json", as_json(record)), (f"k\udcff.0{Path(name).suffix}", samples.content(name))]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = write_tar(tmp_path / f"{form}.tar", members, form)
        corpus, report = samples.load(tmp_path / "cache", path)
        assert (report.problems, corpus.image_counts.tolist()) == ([], [1])


def test_names_under_another_key_are_members_too(samples: Samples, tmp_path: Path) -> None:
    members = [
        (name, as_json({("images" if key == "images" else key): value for key, value in json.loads(content).items()}))
        if name.endswith(".json")
        else (name, content)
        for name, content in shards(samples, named="{key}.{ending}")
    ]
    path = write_tar(tmp_path / "shard.tar", members)
    samples.check_equal(tmp_path / "cache", path, columns={"images": "images"})
