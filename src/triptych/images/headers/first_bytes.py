"""What content is by its first bytes: images written as base64 text, and files that are no images."""

from __future__ import annotations

import base64
import re
import urllib.parse

from triptych.sources.text_files.other_content import POINTERS

INLINE = "data:"
"""Begins a data URI."""

HEAD = 512
"""Bytes that show what a file is."""

_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "R0lGODlh", "R0lGODdh", "UklGR", "Qk", "SUkq", "TU0AK", "AAAA")
"""How JPEG, PNG, GIF, WebP, BMP, TIFF and AVIF begin in base64."""
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]+=*\s*")
_SHORTEST = 48
"""Characters of the shortest base64 that is taken for an image; a file may be called QkA."""
_URL_SAFE = str.maketrans("-_", "+/")


def as_data_uri(text: str) -> str | None:
    """Raw base64 of an image as a data URI, None for anything else: a path has a dot, or does not begin so."""
    start = text[:80].lstrip()
    if not start.startswith(_BASE64_STARTS) or len(text) < _SHORTEST or _BASE64.fullmatch(text) is None:
        return None
    return f"{INLINE};base64,{''.join(text.split())}"


def looks_like_base64(text: str) -> bool:
    """Whether a long string that names no file is rather base64 data of an unknown kind."""
    return len(text) > 200 and _BASE64.fullmatch(text) is not None


def decode_data_uri(uri: str) -> bytes:
    """The bytes of a data URI; white space, percent escapes, the alphabet of URLs and a missing end are accepted.

    Raises:
        ValueError: saying what is wrong.
    """
    header, comma, payload = uri.partition(",")
    if not comma or not header.lower().replace(" ", "").endswith(";base64"):
        raise ValueError("a data URI must be base64: data:image/png;base64,...")
    if "%" in payload:
        payload = urllib.parse.unquote(payload)
    payload = "".join(payload.split()).translate(_URL_SAFE).rstrip("=")
    if not payload:
        raise ValueError("the data URI is empty")
    try:
        return base64.b64decode(payload + "=" * (-len(payload) % 4), validate=True)
    except ValueError as error:
        raise ValueError(f"the data URI is not valid base64: {error}") from error


_STARTS: tuple[tuple[bytes, str], ...] = (
    *POINTERS,
    (b"%PDF-", "a PDF; render its pages as images: pdftoppm -r 150 -png FILE.pdf page"),
    (b"%!PS", "a PostScript file; render it as PNG"),
    (b"PK\x03\x04", "a ZIP archive or an Office document; unpack it, or export its pages as images"),
    (b"Rar!", "a RAR archive; unpack it"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it"),
    (b"\x1f\x8b", "gzip data; unpack it with gunzip"),
    (b"\x28\xb5\x2f\xfd", "Zstandard data; unpack it with unzstd"),
    (b"\x93NUMPY", "a NumPy array; save it as an image: PIL.Image.fromarray(numpy.load(FILE)).save('a.png')"),
    (b"\x89HDF", "an HDF5 file; save its images as PNG"),
    (b"PAR1", "a Parquet file; name it as data, not as an image"),
    (b"\x1aE\xdf\xa3", "a video (Matroska or WebM); take images from it: ffmpeg -i FILE -vf fps=1 %04d.jpg"),
    (b"\x00\x00\x01\xba", "a video (MPEG); take images from it: ffmpeg -i FILE -vf fps=1 %04d.jpg"),
    (b"FLV", "a video (Flash); take images from it: ffmpeg -i FILE -vf fps=1 %04d.jpg"),
    (b"ID3", "an audio file"),
    (b"OggS", "an audio or video file (Ogg)"),
    (b"fLaC", "an audio file"),
    (b"\xff\x0a", "a JPEG XL image, which Pillow does not read; save it as PNG or JPEG"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL image, which Pillow does not read; save it as PNG or JPEG"),
    (b"\x76\x2f\x31\x01", "an OpenEXR image, which Pillow does not read; save it as PNG"),
    (b"II*\0", "a TIFF or raw photo of a kind that Pillow does not read; save it as PNG or as an 8-bit TIFF"),
    (b"MM\0*", "a TIFF or raw photo of a kind that Pillow does not read; save it as PNG or as an 8-bit TIFF"),
    (b"II+\0", "a BigTIFF that Pillow does not read; save it as PNG or JPEG"),
    (b"\x89PNG", "a PNG whose header is damaged; restore the file"),
    (b"\xff\xd8\xff", "a JPEG whose header is damaged; restore the file"),
    (b"GIF8", "a GIF whose header is damaged; restore the file"),
)
_BRANDS = {b"hei": "HEIC", b"hev": "HEIC", b"mif": "HEIC", b"msf": "HEIC", b"avi": "AVIF"}
_RIFF = {b"AVI ": "a video (AVI); take images from it: ffmpeg -i FILE -vf fps=1 %04d.jpg", b"WAVE": "an audio file"}


def what_it_is(head: bytes) -> str:
    """Of a file that is no image that Pillow reads: what it is and what to do, to follow "it is".

    Args:
        head: its first ``HEAD`` bytes, or all of it.
    """
    if not head:
        return "empty"
    for start, said in _STARTS:
        if head.startswith(start):
            return said
    if head[4:8] == b"ftyp":
        name = _BRANDS.get(head[8:11])
        if name is not None:
            return f"a {name} photo, which Pillow does not read here; save it as JPEG: magick FILE FILE.jpg"
        return "a video (MP4 or QuickTime); take images from it: ffmpeg -i FILE -vf fps=1 %04d.jpg"
    if head.startswith(b"RIFF") and head[8:12] in _RIFF:
        return _RIFF[head[8:12]]
    if head[128:132] == b"DICM":
        return "a DICOM file; export its pixels as PNG, for example with pydicom or dcm2img"
    if head[257:262] == b"ustar":
        return "a tar archive; set media_dir to it and name its members"
    if not head.strip(b"\0"):
        return "nothing but zero bytes, as an interrupted copy leaves them; restore the file"
    return _text_kind(head) or f"unknown: it begins with the bytes {head[:8].hex(' ')}"


def _text_kind(head: bytes) -> str | None:
    try:
        text = head.decode("utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig", "ignore")
    except UnicodeDecodeError:
        return None
    if any(ord(character) < 32 and character not in "\t\r\n\f\x1b" for character in text):
        return None
    if len(text.encode()) < len(head) // 2:  # little of it is text
        return None
    text = text.strip()
    lower = text.lower()
    if "<svg" in lower:
        return "an SVG drawing; render it as PNG: rsvg-convert FILE.svg -o FILE.png"
    if lower.startswith(("<!doctype html", "<html", "<head", "<script", "<meta")) or "<html" in lower:
        return "an HTML page, most likely an error or log-in page that was saved as the image; download it again"
    if lower.startswith("<"):
        return "XML, most likely the error message of a server that was saved as the image; download it again"
    if lower.startswith(("{", "[")):
        return "JSON text, most likely the answer of a server that was saved as the image; download it again"
    if text.startswith(INLINE) or as_data_uri(text) is not None:
        return "base64 text; decode it: base64 -d FILE > FILE.png"
    return f"text that begins with {text[:40]!r}"
