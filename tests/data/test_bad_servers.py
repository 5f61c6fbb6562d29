"""Servers that are endless, slow, lying or lead elsewhere: bounded in bytes, time and memory; each image has a code."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

import tiny
from triptych.corpus.execution.executor import LocalEngine
from triptych.corpus.loading import load_or_build
from triptych.images import identity, measure, pixels
from triptych.images.identity import Rules
from triptych.images.measure import ImageError
from triptych.sources import storage
from triptych.sources.access import addresses, web
from triptych.sources.records import ImageRef, Source

DEADLINE = 1.5
LIMIT = 4 << 20
MEMORY = 300e6


def image(side: int = 64) -> bytes:
    content = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(noise).save(content, "PNG")
    return content.getvalue()


GOOD = image()
BOMB = gzip.compress(bytes(10_000_000), 1) * 20
"""200 MB of zeros"""


class Handler(BaseHTTPRequestHandler):
    """Each path has a manner of its own."""

    protocol_version = "HTTP/1.1"
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        with contextlib.suppress(ConnectionError, TimeoutError):
            MANNERS[self.path.split("/")[1].partition("?")[0]](self)
        self.close_connection = True

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass

    def head(self, status: int = 200, **headers: Any) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def good(self) -> None:
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(GOOD)) + 1, len(GOOD))
        self.head(206, Content_Range=f"bytes {start}-{end - 1}/{len(GOOD)}", Content_Length=end - start)
        self.wfile.write(GOOD[start:end])

    def endless(self) -> None:
        self.head(Connection="close")
        while True:
            self.wfile.write(bytes(1 << 16))

    def endless_range(self) -> None:
        self.head(206, Content_Range="bytes 0-32767/1000000", Connection="close")
        while True:
            self.wfile.write(GOOD)

    def endless_header(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            self.wfile.write(b"X-More: " + bytes([65]) * 1000 + b"\r\n")

    def slow(self) -> None:
        self.head(Content_Length=len(GOOD))
        for place in range(len(GOOD)):
            self.wfile.write(GOOD[place : place + 1])
            time.sleep(0.05)

    def silent(self) -> None:
        time.sleep(4)

    def huge_claim(self) -> None:
        self.head(Content_Length=10**13)
        self.wfile.write(GOOD)

    def huge_range(self) -> None:
        self.head(206, Content_Range="bytes 0-32767/10000000000000", Content_Length=32768)
        self.wfile.write(bytes(32768))

    def other_range(self) -> None:
        self.head(206, Content_Range=f"bytes 100-199/{len(GOOD)}", Content_Length=100)
        self.wfile.write(GOOD[100:200])

    def short(self) -> None:
        self.head(206, Content_Range=f"bytes 0-{len(GOOD) - 1}/{len(GOOD)}", Content_Length=100)
        self.wfile.write(GOOD[:100])

    def gzip_bomb(self) -> None:
        self.head(Content_Encoding="gzip", Content_Length=len(BOMB))
        self.wfile.write(BOMB)

    def pixel_bomb(self) -> None:
        header = b"IHDR\0\1\0\0\0\1\0\0\1\0\0\0\0"  # 65,536 x 65,536 of one bit
        content = GOOD[:12] + header + zlib.crc32(header).to_bytes(4, "big") + GOOD[33:]
        self.head(Content_Length=len(content))
        self.wfile.write(content)

    def changing(self) -> None:
        self.head(206, Content_Range=f"bytes 0-99/{len(GOOD) + len(self.asked)}", Content_Length=100)
        self.wfile.write(GOOD[:100])

    def loop(self) -> None:
        self.head(302, Location=self.path, Content_Length=0)

    def to_file(self) -> None:
        self.head(302, Location="file:///etc/passwd", Content_Length=0)

    def to_good(self) -> None:
        self.head(302, Location="/good/a.png", Content_Length=0)

    def to_metadata(self) -> None:
        self.head(302, Location="http://169.254.169.254/latest/meta-data", Content_Length=0)

    def nothing(self) -> None:
        self.head(Content_Length=0)

    def no_http(self) -> None:
        self.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n" * 100)


MANNERS: dict[str, Callable[[Handler], None]] = {
    name.replace("_", "-"): getattr(Handler, name)
    for name in vars(Handler)
    if not name.startswith(("_", "do_")) and name not in ("asked", "head", "log_message", "protocol_version")
}
SAID = {
    "endless": "over 4 MB",
    "endless-range": "sends more than it says",
    "endless-header": "",
    "slow": "not read within 1.5 s",
    "silent": "not read within 1.5 s",
    "huge-claim": "over 4 MB",
    "huge-range": "over 4 MB",
    "other-range": "to the question for bytes 0-32767",
    "short": "",
    "gzip-bomb": "compressed (Content-Encoding: gzip)",
    "pixel-bomb": "decompression bomb",
    "changing": "",
    "loop": "redirected more than 5 times",
    "to-file": "only http and https are followed",
    "nothing": "is empty",
    "no-http": "",
}
"""Manner -> what the user reads; for some the words of a library."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    Handler.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "IMAGE_SECONDS", DEADLINE)
    monkeypatch.setattr(storage, "IMAGE_BYTES", LIMIT)
    monkeypatch.setattr(web, "PAUSES", (0.01,))


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def problem(url: str, rules: Rules, root: str = "/nowhere", *, decode: bool = False) -> tuple[str, str, float]:
    """(code, message, seconds) of an image that cannot be read."""
    location, began = identity.locate(ImageRef(url), root, rules), time.monotonic()
    with pytest.raises(ImageError) as caught:
        pixels.load_rgb(location) if decode else measure.measure(location)
    return caught.value.code, caught.value.message, time.monotonic() - began


ALL = Rules(allow_remote=True, allow_private=True)


@pytest.mark.usefixtures("bounded")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_every_bad_manner_is_named_within_the_deadline_and_the_memory(address: str) -> None:
    assert set(SAID) == set(MANNERS) - {"good", "to-good", "to-metadata"}
    assert measure.measure(identity.locate(ImageRef(f"{address}/good/a.png"), "/", ALL)).height == 64
    idle, peak, stop = resident(), [0], threading.Event()

    def look() -> None:
        while not stop.wait(0.005):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=look)
    watcher.start()
    jobs = [(manner, decode) for manner in SAID for decode in (False, True)]
    with ThreadPoolExecutor(len(jobs)) as pool:  # all at once, as a row's images are
        found = list(pool.map(lambda job: problem(f"{address}/{job[0]}/a.png", ALL, decode=job[1]), jobs))
    stop.set()
    watcher.join()
    for (manner, _), (code, message, seconds) in zip(jobs, found, strict=True):
        assert code == "image-unreadable", (manner, message)
        assert SAID[manner] in message, (manner, message)
        assert f"{address}/{manner}/a.png" in message
        assert seconds < DEADLINE + 1, (manner, seconds)
    assert peak[0] - idle < MEMORY, f"{(peak[0] - idle) / 1e6:.0f} MB above idle"


@pytest.mark.parametrize(
    ("host", "public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("no address", False),
    ],
)
def test_addresses_of_this_machine_and_private_networks_are_known(host: str, public: bool) -> None:
    assert addresses.is_public(host) == public


@pytest.mark.usefixtures("bounded")
def test_private_addresses_are_refused_by_number_by_name_and_behind_a_redirect(address: str) -> None:
    port, asked = address.rpartition(":")[2], len(Handler.asked)
    remote = Rules(allow_remote=True)
    hosts = ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"]
    for host in hosts:
        code, message, _ = problem(f"http://{host}:{port}/good/a.png", remote)
        assert code == "image-missing", (host, message)
        assert "set data.allow_private: true" in message, (host, message)
    assert len(Handler.asked) == asked, "nobody was asked"
    # The host that the user named the media folder by is read, but leads to no other one.
    assert measure.measure(identity.locate(ImageRef("to-good/a.png"), address, remote)).width == 64
    code, message, _ = problem("to-metadata/a.png", remote, address)
    assert (code, "169.254.169.254 is an address of this machine" in message) == ("image-missing", True), message


@pytest.mark.usefixtures("bounded")
def test_a_confined_image_is_not_redirected_out_of_its_folder(address: str) -> None:
    confined = Rules(confine=True, allow_remote=True)
    code, message, _ = problem("to-good/a.png", confined, f"{address}/to-good")
    assert (code, "redirected to" in message) == ("image-outside", True), message
    for name in ("../good/a.png", "%2e%2e/good/a.png", "a/..%2f../good/a.png", f"{address}/good/a.png"):
        code, message, _ = problem(name, confined, f"{address}/to-good")
        assert code == "image-outside", (name, message)
    assert measure.measure(identity.locate(ImageRef("a.png"), f"{address}/good", confined)).width == 64


def test_records_name_no_other_kinds_of_addresses(tmp_path: Path) -> None:
    tiny.write_image(tmp_path / "a.png", 40, 40)
    with fsspec.open("memory://box/a.png", "wb") as file:
        file.write((tmp_path / "a.png").read_bytes())
    for url in (
        f"local://{tmp_path}/a.png",
        f"simplecache::file://{tmp_path}/a.png",
        "memory://box/a.png",
        "ssh://x/a",
    ):
        code, message, _ = problem(url, ALL)
        assert (code, "records may name web addresses" in message) == ("image-missing", True), message
    assert measure.measure(identity.locate(ImageRef("a.png"), "memory://box", ALL)).width == 40


@pytest.mark.usefixtures("bounded")
def test_the_good_samples_of_a_bad_server_are_used(address: str, tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    manners = ("good", "endless", "to-good", "slow", "good", "huge-claim")
    own.write_text(json.dumps([tiny.record([f"{address}/{name}/a.png"], "<image>?", "yes") for name in manners]))
    source = Source(str(own), allow_remote=True, allow_private=True)
    _, report = load_or_build([source], None, tmp_path / "cache", LocalEngine(1))
    assert report.samples == 6
    assert [found.origin.line for found in report.problems] == [2, 4, 6]


@pytest.mark.usefixtures("bounded")
def test_a_connection_that_is_refused_or_never_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "CONNECT_SECONDS", 0.5)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        code, message, seconds = problem(f"http://127.0.0.1:{listener.getsockname()[1]}/a.png", ALL)
        assert code == "image-unreadable", message
        assert seconds < DEADLINE + 1
