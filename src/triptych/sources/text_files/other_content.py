"""What a file named as data holds instead, by its first bytes, and what to do."""

from __future__ import annotations

POINTERS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; run `git lfs pull` where it was cloned"),
    (b"/annex/objects/", "a git-annex pointer, not the file itself; run `git annex get`"),
)
"""How the small files begin that stand for large ones."""
HEAD = 64
"""Bytes that show it"""
_STARTS: tuple[tuple[bytes, str], ...] = (
    *POINTERS,
    (b"PAR1", "a Parquet file; let its name end in .parquet"),
    (b"ARROW1", "an Arrow file; let its name end in .arrow"),
    (b"\xff\xff\xff\xff", "an Arrow file; let its name end in .arrow"),
    (b"\x1f\x8b", "gzip data; let its name end in .gz, as in data.jsonl.gz"),
    (b"\x28\xb5\x2f\xfd", "Zstandard data; let its name end in .zst, as in data.jsonl.zst"),
    (b"BZh", "bzip2 data; unpack it: bunzip2 FILE"),
    (b"\xfd7zXZ", "xz data; unpack it: unxz FILE"),
    (b"PK\x03\x04", "a ZIP archive or an Office document; unpack it, or export its rows as CSV"),
    (b"SQLite format 3", "an SQLite database; export its rows as CSV"),
    (b"%PDF-", "a PDF; data is text in JSON, CSV, Parquet or Arrow"),
    (b"\x89PNG", "an image; name it in a record"),
    (b"\xff\xd8\xff", "an image; name it in a record"),
    (b"\x93NUMPY", "a NumPy array; write its rows as JSON lines"),
    (b"\x89HDF", "an HDF5 file; write its rows as JSON lines, or as Parquet"),
    (b"\x80\x04\x95", "a pickle of Python, which is not read since it can run programs; write it with json.dumps"),
    (b"\x80\x05\x95", "a pickle of Python, which is not read since it can run programs; write it with json.dumps"),
)


def what_it_holds(head: bytes) -> str | None:
    """What the file is, to follow "it is"; None if nothing speaks against data.

    Args:
        head: its first ``HEAD`` bytes or more, uncompressed where its name says so.
    """
    for start, said in _STARTS:
        if head.startswith(start):
            return said
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:16].lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<error")):
        return "an HTML or XML page, most likely the error or log-in page of a server; download the data again"
    if head[:HEAD] and not head[:HEAD].strip(b"\0"):
        return "nothing but zero bytes, as an interrupted copy leaves them; restore the file"
    return None
