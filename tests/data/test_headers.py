"""A size read from the header is what Pillow would say; whatever is odd or damaged is left to Pillow."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import IO

import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

import tiny
from equivalence import image_files
from triptych.images import measure
from triptych.images.headers.read import read_header
from triptych.images.traits import Measured

HEIGHT, WIDTH = image_files.HEIGHT, image_files.WIDTH
Part = tuple[bytes, bytes]
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def read_size(file: IO[bytes], size: int) -> tuple[int, int] | None:
    found = read_header(file, size)
    return None if found is None else (found.height, found.width)


def read(content: bytes) -> tuple[int, int] | None:
    return read_size(BytesIO(content), len(content))


def by_pillow(content: bytes) -> Measured | str:
    """Size and traits, or why there are none."""
    try:
        return measure._by_pillow(BytesIO(content), "image", len(content))
    except measure.ImageError as error:
        return error.message


def agrees(content: bytes) -> bool:
    """Check an answer, if there is one, against Pillow; whether there was one."""
    found = read_header(BytesIO(content), len(content))
    if found is None:
        return False
    assert found == by_pillow(content)
    with measure.opened(BytesIO(content), "image") as image:
        assert measure._ends_whole(image.format, BytesIO(content), len(content))
    return True


# Files, as parts that can be put together again


def tiff(order: str, *entries: tuple[int, int, int, bytes], behind: bytes = b"") -> bytes:
    """EXIF data of one directory; values longer than 4 bytes are to be offsets into ``behind``, from 1000."""
    head = struct.pack(order + "2sHL", b"II" if order == "<" else b"MM", 42, 8)
    directory = b"".join(struct.pack(order + "HHL4s", *entry) for entry in entries)
    body = head + struct.pack(order + "H", len(entries)) + directory + bytes(4)
    return body.ljust(1000, b"\0") + behind if behind else body


def turned(order: str, orientation: int) -> bytes:
    return tiff(order, (0x0112, 3, 1, struct.pack(order + "H", orientation)))


def camera(order: str, orientation: int) -> bytes:
    """As cameras write it: a maker, a resolution, and tags after the orientation."""
    where = [struct.pack(order + "L", offset) for offset in (1000, 1016, 1024)]
    return tiff(
        order,
        (0x010F, 2, 14, where[0]),
        (0x0112, 3, 1, struct.pack(order + "H", orientation)),
        (0x011A, 5, 1, where[1]),
        (0x0128, 3, 1, struct.pack(order + "H", 2)),
        (0x9C9B, 1, 20, where[2]),
        behind=b"Maker of them\0\0\0" + struct.pack(order + "2L", 72, 1) + bytes(5000),
    )


def jpeg_segments(content: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """((marker, data) of the segments in front of the pixels, all from the start of the scan)."""
    segments, position = [], 2
    while content[position + 1] != 0xDA:
        marker, length = struct.unpack_from(">xBH", content, position)
        segments.append((marker, content[position + 4 : position + 2 + length]))
        position += 2 + length
    return segments, content[position:]


def jpeg(segments: list[tuple[int, bytes]], rest: bytes) -> bytes:
    body = b"".join(struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data for marker, data in segments)
    return b"\xff\xd8" + body + rest


def jpeg_with(*front: tuple[int, bytes], **options: object) -> bytes:
    segments, rest = jpeg_segments(image_files.saved(image_files.upright(), "JPEG", **options))
    return jpeg([*front, *segments], rest)


def webp_chunks(content: bytes) -> list[Part]:
    chunks, position = [], 12
    while position < len(content):
        kind, length = struct.unpack_from("<4sL", content, position)
        chunks.append((kind, content[position + 8 : position + 8 + length]))
        position += 8 + length + length % 2
    return chunks


def webp(chunks: list[Part]) -> bytes:
    body = b"".join(kind + struct.pack("<L", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in chunks)
    return b"RIFF" + struct.pack("<L", len(body) + 4) + b"WEBP" + body


def png_with(*front: Part, behind: tuple[Part, ...] = ()) -> bytes:
    header, *chunks, end = image_files.png_chunks(image_files.saved(image_files.upright(), "PNG"))
    return image_files.png([header, *front, *chunks, *behind, end])


def png_depth(depth: int, colour: int, interlaced: bool) -> bytes:
    """Pillow reads only the header; the pixels are never looked at."""
    header = struct.pack(">LLBBBBB", WIDTH, HEIGHT, depth, colour, 0, 0, interlaced)
    palette = [(b"PLTE", bytes(48))] if colour == 3 else []
    return image_files.png([(b"IHDR", header), *palette, (b"IDAT", zlib.compress(b"")), (b"IEND", b"")])


def photoshop(*items: bytes) -> bytes:
    padded = (item + b"\0" * (len(item) % 2) for item in items)
    body = b"".join(b"8BIM\x04\x04\0\0" + struct.pack(">L", len(item)) + item for item in padded)
    return b"Photoshop 3.0\0" + body


def plain() -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Name -> file of those that people have most."""
    image = image_files.upright()
    for options in ({}, {"progressive": True}, {"quality": 30, "restart_marker_blocks": 2}, {"comment": b"made so"}):
        yield f"{options}.jpg", lambda options=options: image_files.saved(image, "JPEG", **options)
    for mode in ("L", "CMYK"):
        yield f"{mode}.jpg", lambda mode=mode: image_files.saved(image.convert(mode), "JPEG", icc_profile=PROFILE)
    yield "16-bit-tables.jpg", lambda: image_files.saved(image, "JPEG", qtables=[[999] * 64] * 2)
    for order in "<>":
        for number in range(1, 9):
            for make in (turned, camera):
                data, name = make(order, number), f"{make.__name__}{order}{number}"
                yield f"{name}.jpg", lambda data=data: jpeg_with((0xE1, b"Exif\0\0" + data))
                yield f"{name}.png", lambda data=data: png_with((b"eXIf", data))
                for lossless in (False, True):
                    options = {"exif": data, "lossless": lossless}
                    yield (
                        f"{name}{lossless}.webp",
                        lambda o=options: image_files.saved(image_files.alpha("RGB"), "WEBP", **o),
                    )
    longest = b"\xff\xd9" * 32766
    for marker in (0xE2, 0xE4, 0xEF, 0xFE, 0xED):
        yield f"long-{marker:x}.jpg", lambda m=marker: jpeg_with((m, longest), (m, longest), (m, longest))
    thumbnail = b"Exif\0\0" + turned("<", 6) + bytes(60_000)
    yield "thumbnail.jpg", lambda: jpeg_with((0xE0, b"JFIF\0" + bytes(9)), (0xE1, thumbnail), (0xE1, b"other"))
    yield "photoshop.jpg", lambda: jpeg_with((0xED, photoshop(b"", b"caption", bytes(40))))
    plain_xmp = (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>" + bytes(9000))
    yield "xmp.jpg", lambda: jpeg_with(plain_xmp)
    both = (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + image_files.xmp(8).encode())
    yield "exif-and-xmp.jpg", lambda: jpeg_with(both, (0xE1, b"Exif\0\0" + turned(">", 1)))

    for colour, depths in {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}.items():
        for depth in depths:
            yield f"{depth}-{colour}.png", lambda d=depth, c=colour: png_depth(d, c, d == 8)
    info = PngInfo()
    info.add_text("Software", "a painter")
    info.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta/>")
    yield "texts.png", lambda: image_files.saved(image, "PNG", pnginfo=info, dpi=(300, 300), icc_profile=PROFILE)
    yield "behind.png", lambda: png_with(behind=((b"tEXt", b"date:create\x002026-01-01"), (b"zTXt", b"Comment\0\0x")))
    yield "many.png", lambda: image_files.saved(tiny.image(400, 400).resize((900, 500)), "PNG", compress_level=0)

    yield "behind.webp", lambda: image_files.saved(image, "WEBP") + b"notes"
    yield "profile.webp", lambda: image_files.saved(image, "WEBP", icc_profile=PROFILE, xmp=b"<x:xmpmeta/>")
    yield "alpha.webp", lambda: image_files.saved(image_files.alpha("RGB"), "WEBP", quality=50)


PLAIN = dict(plain())
USUAL = [
    name
    for name in image_files.FILES
    if name.endswith((".jpg", ".png", ".webp")) and not any(part in name for part in ("xmp", "after", "profile"))
]
"""Of the awkward images, those whose orientation stands where most programs write it."""


def odd() -> Iterator[tuple[str, bytes]]:
    """Files that are not judged here, whether Pillow takes them or not."""
    upright = image_files.upright()
    rest = jpeg_segments(image_files.saved(upright, "JPEG"))
    frame = next(data for marker, data in rest[0] if marker == 0xC0)

    def with_frame(marker: int, data: bytes) -> bytes:
        return jpeg([(m, d) if m != 0xC0 else (marker, data) for m, d in rest[0]], rest[1])

    for marker in (0xC3, 0xC5, 0xC9, 0xCA, 0xCB):
        yield f"frame-{marker:x}", with_frame(marker, frame)
    yield "12-bit", with_frame(0xC1, b"\x0c" + frame[1:])
    yield "two-colours", with_frame(0xC0, frame[:5] + b"\2" + frame[6:12])
    yield "no-height", with_frame(0xC0, frame[:1] + bytes(2) + frame[3:])
    yield "huge.jpg", with_frame(0xC0, frame[:1] + b"\xff" * 4 + frame[5:])
    yield "no-frame", jpeg([part for part in rest[0] if part[0] != 0xC0], rest[1])
    yield "mpo", image_files.saved(upright, "MPO", save_all=True, append_images=[upright])
    yield "xmp.jpg", image_files.FILES["orientation-6-xmp.jpg"]()
    yield "two-exifs", jpeg_with(*[(0xE1, b"Exif\0\0" + turned("<", number)) for number in (3, 6)])
    for name, data in odd_exif():
        yield f"{name}.jpg", jpeg_with((0xE1, b"Exif\0\0" + data))
        yield f"{name}.png", png_with((b"eXIf", data))
        yield f"{name}.webp", image_files.saved(upright, "WEBP", exif=data)
    for short in (b"JFIF\0", b"Adobe", b"ICC_PROFILE\0\1"):
        marker = {b"J": 0xE0, b"A": 0xEE, b"I": 0xE2}[short[:1]]
        yield f"short-{marker:x}", jpeg_with((marker, short))
    yield "cut-photoshop", jpeg_with((0xED, b"Photoshop 3.0\x008BIM\4\4"))
    yield "cut-table", jpeg_with((0xDB, bytes(64)))
    yield "cut.jpg", image_files.saved(upright, "JPEG")[:-2]

    for name in ("exif-after", "xmp-before", "xmp-after", "profile-before", "profile-after"):
        yield f"{name}.png", image_files.FILES[f"orientation-6-{name}.png"]()
    yield "text-exif.png", png_with((b"tEXt", b"exif\0" + turned("<", 6)))
    yield "animated.png", image_files.saved(upright, "PNG", save_all=True, append_images=[upright.rotate(9)])
    yield "short-tRNS", png_with((b"tRNS", b"\0"))
    yield "profile-bomb", png_with((b"iCCP", b"p\0\0" + zlib.compress(bytes(3 << 20))))
    yield "3-bit.png", png_depth(3, 0, False)
    yield "16-bit-palette.png", png_depth(16, 3, False)
    yield "notes.png", image_files.saved(upright, "PNG") + b"notes"
    between = image_files.png_chunks(image_files.saved(upright, "PNG"))
    yield "exif-between", image_files.png([*between[:-1], (b"eXIf", turned("<", 6)), (b"IDAT", b""), between[-1]])
    yield "cut.png", image_files.saved(upright, "PNG")[:-12]

    yield "animated.webp", image_files.saved(upright, "WEBP", save_all=True, append_images=[upright.rotate(9)])
    yield "xmp.webp", image_files.FILES["orientation-6-xmp.webp"]()
    ((kind, lossy),) = webp_chunks(image_files.saved(upright, "WEBP"))
    for name, start in (("no-key-frame", lossy[0] | 1), ("profile-7", lossy[0] | 14), ("hidden", lossy[0] & ~16)):
        yield name, webp([(kind, bytes([start]) + lossy[1:])])
    yield "no-width.webp", webp([(kind, lossy[:6] + bytes(2) + lossy[8:])])
    ((kind, lossless),) = webp_chunks(image_files.saved(upright, "WEBP", lossless=True))
    yield "version-1", webp([(kind, lossless[:4] + bytes([lossless[4] | 32]) + lossless[5:])])
    yield "cut.webp", image_files.saved(upright, "WEBP")[:-2]
    yield "cut-twice.webp", webp([(kind, lossless)])[:100]
    for name in ("rgb.bmp", "rgb.tiff", "palette.gif"):
        yield name, image_files.FILES[name]()
    yield "empty", b""


def odd_exif() -> Iterator[tuple[str, bytes]]:
    six = struct.pack("<H", 6)
    yield "long", tiff("<", (0x0112, 4, 1, struct.pack("<L", 6)))
    yield "bytes", tiff("<", (0x0112, 1, 1, b"\6"))
    yield "two-values", tiff("<", (0x0112, 3, 2, six + six))
    yield "no-value", tiff("<", (0x0112, 3, 0, six))
    yield "twice", tiff("<", (0x0112, 3, 1, six), (0x0112, 3, 1, b"\1\0"))
    yield "outside", tiff("<", (0x010F, 2, 99, struct.pack("<L", 70_000)), (0x0112, 3, 1, six))
    yield "unknown-type", tiff("<", (0x010F, 77, 1, bytes(4)), (0x0112, 3, 1, six))
    yield "text-resolution", tiff("<", (0x0112, 3, 1, six), (0x011A, 2, 2, b"5\0"), (0x0128, 3, 1, b"\2\0"))
    yield "big-tiff", b"II+\0\x08\0\0\0" + turned("<", 6)[8:]
    yield "cut-exif", turned("<", 6)[:20]
    yield "not-exif", b"orientation: 6, which nobody reads"


ODD = dict(odd())


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_file_is_measured_as_pillow_does(name: str) -> None:
    assert agrees(PLAIN[name]()), "left to Pillow"


@pytest.mark.parametrize("name", USUAL)
def test_usual_images_need_no_pillow(name: str) -> None:
    assert agrees(image_files.FILES[name]()), "left to Pillow"


def test_awkward_images_are_measured_as_pillow_does_or_left_to_it() -> None:
    answers = [agrees(content()) for content in image_files.FILES.values()]
    assert True in answers
    assert False in answers


@pytest.mark.parametrize("name", ODD)
def test_an_odd_file_is_left_to_pillow(name: str) -> None:
    assert read(ODD[name]) is None


def test_the_orientation_counts() -> None:
    for order in "<>":
        sizes = [read(jpeg_with((0xE1, b"Exif\0\0" + camera(order, number)))) for number in range(1, 9)]
        assert sizes == [(HEIGHT, WIDTH)] * 4 + [(WIDTH, HEIGHT)] * 4


# Damage

BASES = {
    "rgb.jpg": lambda: image_files.saved(image_files.upright(), "JPEG", icc_profile=PROFILE, comment=b"a comment"),
    "metadata.jpg": lambda: jpeg_with(
        (0xE1, b"Exif\0\0" + camera(">", 6)), (0xED, photoshop(b"caption", bytes(9))), (0xEE, b"Adobe" + bytes(7))
    ),
    "turned.jpg": lambda: jpeg_with((0xE1, b"Exif\0\0" + turned("<", 6)), progressive=True),
    "xmp.jpg": lambda: jpeg_with((0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>")),
    "turned.png": lambda: png_with((b"eXIf", turned(">", 6)), (b"pHYs", bytes(9)), (b"gAMA", bytes(4))),
    "texts.png": lambda: PLAIN["texts.png"](),
    "palette.png": lambda: image_files.FILES["palette-alphas.png"](),
    "lossy.webp": lambda: image_files.saved(image_files.upright(), "WEBP"),
    "lossless.webp": lambda: image_files.saved(image_files.upright(), "WEBP", lossless=True),
    "turned.webp": lambda: image_files.saved(
        image_files.alpha("RGB"), "WEBP", exif=turned("<", 6), icc_profile=PROFILE
    ),
    "xmp.webp": lambda: image_files.saved(image_files.alpha("RGB"), "WEBP", xmp=b"<x:xmpmeta/>", lossless=True),
}


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Some bytes of the first 2 KiB, and most often of the first 64, changed; or the end cut off."""
    changed = bytearray(content)
    if chance.random() < 0.1:
        return content[: chance.randrange(len(content))]
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        position = chance.randrange(min(len(content), chance.choice((64, 300, 2048))))
        changed[position] = chance.choice((0, 255, changed[position] ^ 1 << chance.randrange(8), chance.randrange(256)))
    return bytes(changed)


def rearranged(parts: list[Part], chance: random.Random) -> list[Part]:
    """Parts of a file dropped, doubled, moved, cut or changed, in a file that is otherwise well-formed."""
    parts = list(parts)
    for _ in range(chance.choice((1, 1, 2))):
        number = chance.randrange(len(parts))
        kind, data = parts.pop(number)
        action = chance.randrange(5)
        if action == 1:
            parts[number:number] = [(kind, data), (kind, data)]
        elif action == 2:
            parts.insert(chance.randrange(len(parts) + 1), (kind, data))
        elif action == 3:
            parts.insert(number, (kind, data[: chance.randrange(len(data) + 1)]))
        elif action == 4:
            parts.insert(number, (kind, damaged(data, chance) if data else b"\0"))
        if not parts:
            return [(kind, data)]
    return parts


def rebuilt(content: bytes, chance: random.Random) -> bytes:
    if content.startswith(b"RIFF"):
        return webp(rearranged(webp_chunks(content), chance))
    if content.startswith(b"\x89"):
        return image_files.png(rearranged(image_files.png_chunks(content), chance))
    segments, rest = jpeg_segments(content)
    parts = rearranged([(bytes([marker]), data) for marker, data in segments], chance)
    return jpeg([(marker[0], data) for marker, data in parts], rest)


@pytest.mark.parametrize("damage", [damaged, rebuilt])
@pytest.mark.parametrize("name", BASES)
def test_a_damaged_file_has_the_size_that_pillow_gives_it_or_none(
    name: str, damage: Callable[[bytes, random.Random], bytes]
) -> None:
    chance = random.Random(name)
    content = BASES[name]()
    assert agrees(content)
    answers = [agrees(damage(content, chance)) for _ in range(400)]
    assert answers.count(True) > 15, "hardly any damage left an answer to check"
    assert answers.count(False) > 15


@pytest.mark.parametrize("name", BASES)
def test_a_file_cut_anywhere_is_left_to_pillow(name: str) -> None:
    content = BASES[name]()
    assert not any(read(content[:length]) for length in range(0, len(content), 7))


# Reading


class Counted(BytesIO):
    """A file that notes how much is read of it."""

    taken = 0
    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.taken += len(data)
        self.reads += 1
        return data


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "WEBP"])
def test_little_is_read(tmp_path: Path, suffix: str) -> None:
    chance = random.Random(0)
    image = Image.frombytes("RGB", (900, 700), chance.randbytes(900 * 700 * 3))
    path = tmp_path / "image"
    image.save(path, suffix, exif=b"Exif\0\0" + turned("<", 6))
    counted = Counted(path.read_bytes())
    size = len(counted.getvalue())
    assert size > 200_000
    assert read_size(counted, size) == (900, 700)
    assert counted.taken < (120_000 if suffix == "PNG" else 40_000)
    assert counted.reads < 10
    with path.open("rb") as file:
        assert read_size(file, size) == (900, 700)


@pytest.mark.parametrize("name", ["rgb.jpg", "turned.png", "turned.webp"])
def test_measuring_a_plain_file_does_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(BASES[name]())
    monkeypatch.delattr(Image, "open")
    measured = measure.measure(str(path))
    expected = (HEIGHT, WIDTH) if name == "rgb.jpg" else (WIDTH, HEIGHT)
    assert (measured.height, measured.width) == expected


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


@pytest.mark.parametrize("behind", ["nothing", "a comment", "an orientation"])
def test_a_png_of_many_chunks_is_judged_by_its_end(behind: str) -> None:
    chance = random.Random(1)
    buffer = BytesIO()
    Image.frombytes("RGB", (900, 700), chance.randbytes(900 * 700 * 3)).save(buffer, "PNG")
    content = buffer.getvalue()
    first = content.index(b"IDAT") - 4
    pixels, place = b"", first
    while content[place + 4 : place + 8] == b"IDAT":
        length = int.from_bytes(content[place : place + 4], "big")
        pixels += content[place + 8 : place + 8 + length]
        place += 12 + length
    pieces = [chunk(b"IDAT", pixels[start : start + 8192]) for start in range(0, len(pixels), 8192)]
    extra = {
        "nothing": b"",
        "a comment": chunk(b"tEXt", b"Comment\0" + b"IDAT" * 5),
        "an orientation": chunk(b"eXIf", turned("<", 6)),
    }[behind]
    counted = Counted(content[:first] + b"".join(pieces) + extra + chunk(b"IEND", b""))
    assert len(pieces) > 100
    expected = None if behind == "an orientation" else (700, 900)
    assert read_size(counted, len(counted.getvalue())) == expected
    assert counted.reads < 24
