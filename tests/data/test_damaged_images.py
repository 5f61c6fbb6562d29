"""A thousand damaged files: ``check`` reports those that Pillow cannot decode, and no others.

Pillow is the judge: a file whose damage it does not notice (a flipped byte of a pixel, text after the end) is no
error, for it trains like any other.
"""

import io
import json
import random
import struct
import subprocess
import sys
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

import tiny
from triptych.commands.check import check
from triptych.corpus.execution.executor import LocalEngine
from triptych.images import measure, pixels
from triptych.images.geometry import is_extreme

FILES = 1000
SAVES: list[tuple[str, str, dict[str, object]]] = [
    ("JPEG", "RGB", {}),
    ("JPEG", "RGB", {"progressive": True}),
    ("JPEG", "CMYK", {}),
    ("JPEG", "L", {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"}),
    ("PNG", "RGB", {}),
    ("PNG", "P", {}),
    ("PNG", "LA", {}),
    ("WEBP", "RGB", {}),
    ("WEBP", "RGBA", {"lossless": True}),
    ("GIF", "P", {}),
    ("BMP", "RGB", {}),
    ("TIFF", "RGB", {}),
    ("TIFF", "L", {"compression": "tiff_lzw"}),
]
ENDINGS = ("jpg", "png", "webp", "gif", "bmp", "tiff")
KINDS = {"cut": 280, "body": 260, "header": 260, "ending": 80, "behind": 50, "empty": 10, "text": 25, "bomb": 35}
HUGE = [(20_000, 20_000), (65_535, 65_535), (178_956_971, 1), (13_378, 13_377), (2**31 - 1, 2**31 - 1), (60_000, 3000)]


@dataclass(frozen=True)
class Damaged:
    """One file, and what Pillow says of it."""

    path: Path
    kind: str
    opens: bool
    decodes: bool
    extreme: bool
    """Whether its header names a size that no processor takes; that is said instead."""


def good_files(chance: random.Random) -> list[bytes]:
    result = []
    for form, mode, options in SAVES:
        for seed in range(2):
            buffer = io.BytesIO()
            picture = tiny.image(chance.randrange(40, 130), chance.randrange(40, 130), seed=seed)
            picture.convert(mode).save(buffer, form, **options)
            result.append(buffer.getvalue())
    return result


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


def bomb(chance: random.Random) -> bytes:
    """A header that promises more pixels than anybody wants."""
    width, height = chance.choice(HUGE)
    match chance.choice(("PNG", "BMP", "GIF", "JPEG", "WEBP", "TIFF")):
        case "PNG":
            header = struct.pack(">LLBBBBB", width, height, chance.choice((1, 8)), 0, 0, 0, 0)
            start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
            return start + chunk(b"IDAT", zlib.compress(bytes(100_000))) + chunk(b"IEND", b"")
        case "BMP":
            sizes = struct.pack("<LllHHLLllLL", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
            return b"BM" + struct.pack("<LHHL", 1054, 0, 0, 54) + sizes + bytes(1000)
        case "GIF":
            return b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x02L\x01\0;"
        case "JPEG":
            buffer = io.BytesIO()
            tiny.image(40, 40).save(buffer, "JPEG")
            content = bytearray(buffer.getvalue())
            place = content.index(b"\xff\xc0") + 5
            content[place : place + 4] = struct.pack(">HH", 65_500, 65_500)
            return bytes(content)
        case "WEBP":
            canvas = (16_383).to_bytes(3, "little") * 2
            content = b"WEBPVP8X" + struct.pack("<L", 10) + bytes(4) + canvas
            return b"RIFF" + struct.pack("<L", len(content)) + content
        case _:
            tags = [
                (256, 4, width),
                (257, 4, height),
                (258, 3, 8),
                (259, 3, 1),
                (262, 3, 1),
                (273, 4, 200),
                (279, 4, 9),
            ]
            entries = b"".join(struct.pack("<HHLL", tag, kind, 1, value) for tag, kind, value in tags)
            return b"II*\0" + struct.pack("<LH", 8, len(tags)) + entries + bytes(200)


def text(chance: random.Random) -> bytes:
    start = chance.choice((b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"RIFF0000WEBP"))
    return start + b"<html>404 Not Found</html>" * chance.randrange(1, 9)


def spoil(kind: str, good: bytes, chance: random.Random) -> bytes:
    content = bytearray(good)
    match kind:
        case "cut":
            return good[: chance.randrange(1, len(good))]
        case "body" | "header":
            first, last = (64, len(good)) if kind == "body" else (0, 64)
            for _ in range(chance.randrange(1, 20 if kind == "body" else 4)):
                content[chance.randrange(first, last)] ^= chance.randrange(1, 256)
            return bytes(content)
        case "behind":
            return good + chance.randbytes(chance.randrange(1, 3000))
        case "empty":
            return b""
        case "text":
            return text(chance)
        case "bomb":
            return bomb(chance)
        case _:
            return good


def judge(path: Path, kind: str) -> Damaged:
    """Pillow's verdict on the whole file."""
    opens = decodes = extreme = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path) as image:
                opens = image.width * image.height <= measure.MAX_IMAGE_PIXELS
                extreme = opens and is_extreme(image.height, image.width)
                if opens:
                    image.load()
                    decodes = True
        except Exception:  # whatever a decoder raises is a verdict
            pass
    return Damaged(path, kind, opens, decodes, extreme)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> list[Damaged]:
    """The files; each is the image of one record of ``data.jsonl`` beside them, in the same order."""
    folder = tmp_path_factory.mktemp("damaged")
    chance = random.Random(0)
    good = good_files(chance)
    kinds = [kind for kind, count in KINDS.items() for _ in range(count)]
    chance.shuffle(kinds)
    assert len(kinds) == FILES
    paths = []
    for number, kind in enumerate(kinds):
        path = folder / f"{number:04}.{chance.choice(ENDINGS)}"
        path.write_bytes(spoil(kind, chance.choice(good), chance))
        paths.append(path)
    real = folder / "real.png"
    Image.new("1", (20_000, 10_000)).save(real)  # a bomb that decodes, were it let
    verdicts = [*map(judge, paths, kinds), judge(real, "bomb")]
    lines = [json.dumps(tiny.record([found.path.name], "<image>?", "yes")) + "\n" for found in verdicts]
    (folder / "data.jsonl").write_text("".join(lines))
    return verdicts


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))


def reported(damaged: list[Damaged], capfd: pytest.CaptureFixture[str], *, deep: bool) -> dict[int, str]:
    """Number of the file -> code of its problem."""
    data = damaged[0].path.parent / "data.jsonl"
    check([str(data)], as_json=True, deep=deep, engine=LocalEngine(1))
    result = json.loads(capfd.readouterr().out)
    assert result["samples"] == len(damaged)
    codes = {problem["line"] - 1: problem["code"] for problem in result["problems"]}
    assert len(codes) == len(result["problems"]) == result["samples"] - result["ok"]
    return codes


def expected(damaged: list[Damaged]) -> dict[int, str]:
    return {
        number: "image-extreme" if found.extreme else "image-unreadable"
        for number, found in enumerate(damaged)
        if found.extreme or not found.decodes
    }


@pytest.mark.usefixtures("own_cache")
def test_deep_reports_exactly_what_pillow_cannot_decode(
    damaged: list[Damaged], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    verdicts = expected(damaged)
    assert 400 < len(verdicts) < 900, "files of both sorts"
    assert reported(damaged, capfd, deep=True) == verdicts

    decoded: list[str] = []
    monkeypatch.setattr(measure, "measure", decoded.append)
    monkeypatch.setattr(pixels, "load_rgb", decoded.append)
    assert reported(damaged, capfd, deep=True) == verdicts
    assert reported(damaged, capfd, deep=False) == verdicts, "what was decoded once is known"
    assert decoded == []


@pytest.mark.usefixtures("own_cache")
def test_a_damaged_header_and_a_cut_file_are_found_without_decoding_all(
    damaged: list[Damaged], capfd: pytest.CaptureFixture[str]
) -> None:
    found = reported(damaged, capfd, deep=False)
    verdicts = expected(damaged)
    assert found.items() <= verdicts.items(), "nothing is reported that decodes"
    for number, item in enumerate(damaged):
        if not item.opens or (item.kind == "cut" and not item.decodes):
            assert number in found, item


def test_every_kind_of_damage_is_there(damaged: list[Damaged]) -> None:
    by_kind = {kind: [found for found in damaged if found.kind == kind] for kind in KINDS}
    for kind in ("ending", "behind"):
        assert all(found.decodes for found in by_kind[kind]), "a wrong ending does no harm, nor what stands behind"
    for kind in ("empty", "text", "bomb"):
        assert not any(found.decodes for found in by_kind[kind])
    for kind in ("body", "header"):
        assert len({(found.opens, found.decodes) for found in by_kind[kind]}) == 3, "unnoticed, damaged, unreadable"


PEAK = """
import sys
from pathlib import Path
from triptych.commands.check import check
from triptych.corpus.execution.executor import LocalEngine

def peak():  # kB; not ru_maxrss, which begins with what the parent held
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])

before = peak()
check([sys.argv[1]], as_json=True, deep=True, engine=LocalEngine(1))
print(peak() - before, file=sys.stderr)
"""


@pytest.mark.usefixtures("own_cache")
def test_bombs_cost_no_memory(damaged: list[Damaged]) -> None:
    data = damaged[0].path.parent / "data.jsonl"
    run = subprocess.run([sys.executable, "-c", PEAK, str(data)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "decompression bomb" in run.stdout
    assert len(json.loads(run.stdout)["problems"]) == len(expected(damaged))
    megabytes = int(run.stderr.splitlines()[-1]) / 1024
    assert megabytes < 150, "a decoded bomb is over 178 MB: Pillow holds at least a byte a pixel"
