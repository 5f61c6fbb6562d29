"""Files that are no images are named by their first bytes; base64 is read in every form that people write it."""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

import tiny
from triptych.images import identity, measure, pixels
from triptych.images.measure import ImageError
from triptych.sources.records import ImageRef

KINDS = {
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), "save it as JPEG"),
    "video": (b"\0\0\0\x18ftypisom\0\0\0\0isomiso2" + bytes(200), "ffmpeg"),
    "Matroska": (b"\x1aE\xdf\xa3" + bytes(200), "ffmpeg"),
    "AVI": (b"RIFF\0\0\0\0AVI LIST" + bytes(200), "ffmpeg"),
    "audio": (b"RIFF\0\0\0\0WAVEfmt " + bytes(200), "audio"),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n", "git lfs pull"),
    "git-annex pointer": (b"/annex/objects/MD5-s5--abc\n", "git annex get"),
    "HTML": (b"\n<!DOCTYPE html>\n<html><body>404</body></html>", "download it again"),
    "HTML page": ("<HTML lang='zh'>未找到</HTML>".encode(), "download it again"),
    "SVG": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "rsvg-convert"),
    "XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "download it again"),
    "JSON": (b'{"error": "rate limit"}', "download it again"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3" + bytes(100), "pdftoppm"),
    "ZIP": (b"PK\x03\x04" + bytes(100), "unpack"),
    "gzip": (b"\x1f\x8b\x08" + bytes(100), "gunzip"),
    "DICOM": (bytes(128) + b"DICM" + bytes(100), "pydicom"),
    "NumPy": (b"\x93NUMPY\x01\0" + bytes(100), "fromarray"),
    "JPEG XL": (b"\xff\x0a\xfa\x1f" + bytes(100), "save it as PNG"),
    "zero bytes": (bytes(4096), "restore"),
    "begins with 'not found'": (b"not found", "text"),
    "base64": (base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(100)), "base64 -d"),
    "unknown": (b"\x01\x02\x03\x04\x05\x06\x07\x08\xff", "01 02 03 04"),
    "tar": (b"a" * 257 + b"ustar\x0000" + bytes(200), "media_dir"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_an_image_is_named_with_a_remedy(tmp_path: Path, kind: str) -> None:
    content, remedy = KINDS[kind]
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(ImageError, match="is not an image: it is ") as caught:
        measure.measure(str(tmp_path / "x.jpg"))
    assert caught.value.code == "image-unreadable"
    assert kind in caught.value.message
    assert remedy in caught.value.message


@pytest.mark.parametrize("length", [1, 2, 3, 4, 8, 12, 100, 130, 260, 600])
def test_no_bytes_crash_the_naming(tmp_path: Path, length: int) -> None:
    for fill in (b"\0", b"\xff", b"<", b"A", b"\xe4", b"\xfe\xff", b"RIFF", b"\0\0\0\x18ftyp"):
        (tmp_path / "x").write_bytes((fill * length)[:length])
        with pytest.raises(ImageError):
            measure.measure(str(tmp_path / "x"))


def encoded(form: str) -> str:
    buffer = io.BytesIO()
    tiny.image(40, 50).save(buffer, form)
    return base64.b64encode(buffer.getvalue()).decode()


def wrapped(text: str, width: int = 76, end: str = "\n") -> str:
    return end.join(text[start : start + width] for start in range(0, len(text), width))


FORMS = {
    "raw": lambda text: text,
    "wrapped": wrapped,
    "wrapped-with-end": lambda text: wrapped(text, 64, "\r\n") + "\r\n",
    "unpadded": lambda text: text.rstrip("="),
    "url-safe": lambda text: text.replace("+", "-").replace("/", "_"),
    "data-uri": lambda text: f"data:image/png;base64,{text}",
    "data-uri-wrapped": lambda text: f"data:image/png;base64,{wrapped(text)}",
    "data-uri-escaped": lambda text: f"data:image/png;base64,{text.replace('+', '%2B').replace('=', '%3D')}",
    "data-uri-upper": lambda text: f"DATA:image/PNG;BASE64,{text}",
    "data-uri-charset": lambda text: f"data:image/png;charset=utf-8;base64,{text}",
    "data-uri-typeless": lambda text: f"data:;base64,{text}",
    "base64-scheme": lambda text: f"base64://{text}",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_base64_is_read_however_it_is_written(kind: str, form: str) -> None:
    if form == "url-safe" and kind == "JPEG":
        pytest.skip("begins with /, which becomes _")
    text = FORMS[form](encoded(kind))
    location = identity.locate(ImageRef(text), "/nowhere", identity.Rules(confine=True))
    found = measure.measure(location)
    assert (found.height, found.width) == (40, 50)
    with Image.open(io.BytesIO(base64.b64decode(encoded(kind)))) as image:
        assert pixels.load_rgb(location).tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize(
    "name", ["Qk.png", "Qkabc", "UklGR.webp", "/9j/a.jpg", "iVBORw0KGgo.png", "AAAA", "SUkq/x.tif"]
)
def test_a_path_that_begins_like_base64_is_a_path(tmp_path: Path, name: str) -> None:
    assert identity.locate(ImageRef(name), str(tmp_path), identity.Rules()).endswith(name)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("data:image/png,raw", "must be base64"),
        ("data:image/png;base64", "must be base64"),
        ("data:image/png;base64,", "is empty"),
        ("data:image/png;base64,!!!", "not valid base64"),
        ("data:image/png;base64,é", "not valid base64"),
    ],
)
def test_a_data_uri_that_cannot_be_read_says_why(uri: str, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        measure.measure(identity.locate(ImageRef(uri), "/", identity.Rules()))
