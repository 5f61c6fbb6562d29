"""Data and images behind URLs: the same corpus as from local files, few bytes, few requests, and none uninvited."""

import base64
import gzip
import json
import socket
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import boto3
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image

import tiny
from triptych.corpus.corpus import Corpus
from triptych.corpus.examine import CheckReport, Encoder
from triptych.corpus.execution.executor import LocalEngine
from triptych.corpus.loading import load_or_build
from triptych.errors import ConfigError
from triptych.family.family import read_model_files
from triptych.images.pixels import load_patches
from triptych.sources import storage
from triptych.sources.access import guarded, web
from triptych.sources.records import Source
from triptych.text.layout import Budget

IMAGES = ("a.png", "b c.jpg", "sub/dé.png", "100%.webp")
DATA = ("lines.jsonl", "array.json", "packed.jsonl.gz", "table.parquet", "samples.tar")


@dataclass
class Site:
    """A web server over a folder, and what was asked of it."""

    folder: Path
    address: str = ""
    delay: float = 0.0
    """Seconds before each answer."""
    ranges: bool = True
    answers: dict[str, int] = field(default_factory=dict)
    """Path -> the status that it is answered with."""
    times: int = 10**9
    """How often."""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """(method, target, Authorization) of each request."""
    sent: int = 0
    """Bytes of bodies."""
    in_flight: int = 0
    most_in_flight: int = 0
    """Requests at once, while they wait for their answer."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def forget(self) -> None:
        self.asked.clear()
        self.sent = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        site = self.site
        with site.lock:
            site.in_flight += 1
            site.most_in_flight = max(site.most_in_flight, site.in_flight)
        time.sleep(site.delay)
        with site.lock:
            site.in_flight -= 1
        name = unquote(urlsplit(self.path).path).lstrip("/")
        with site.lock:
            site.asked.append((self.command, self.path, self.headers.get("Authorization", "")))
            status = site.answers.get(name)
            site.times -= status is not None
        path = site.folder / name
        if status is None or site.times < 0:
            status = 200 if path.is_file() else 404
        content = path.read_bytes() if status == 200 else b""
        begin, end = 0, len(content)
        if status == 200 and site.ranges and "Range" in self.headers:
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            begin, end, status = int(first), min(int(last) + 1, end), 206
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
        if not site.ranges:
            self.send_header("Accept-Ranges", "none")
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        if self.command == "GET":
            try:
                self.wfile.write(content[begin:end])
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
            with site.lock:
                site.sent += end - begin

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path / "site")
    site.folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("SiteHandler", (Handler,), {"site": site}))
    site.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield site
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    """An S3 of this process, found by its address in the environment as any other would be."""
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        yield client
        client.close()
    server.stop()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@dataclass
class Job:
    """How corpora are made."""

    encoder: Encoder
    cache: Path

    def load(self, source: Source, cache: str = "cache") -> tuple[Corpus, CheckReport]:
        engine = LocalEngine(1)
        return load_or_build([source], self.encoder, self.cache / cache, engine)


@pytest.fixture
def job(model_dir: Path, tmp_path: Path) -> Job:
    files = read_model_files(str(model_dir))
    return Job(Encoder(files.template(), files.geometry, Budget(max_tokens=200), files.text_hash()), tmp_path)


def records(prefix: str = "") -> list[Any]:
    made = [
        tiny.record([prefix + name for name in IMAGES[: number % 5]], "<image>" * (number % 5) + "hi", "yes")
        for number in range(12)
    ]
    return [*made, tiny.record(["x.png"], "no mark", "yes")]


def write_site(folder: Path, prefix: str = "") -> None:
    """Images, and the same records over them in every kind of data file."""
    for number, name in enumerate(IMAGES):
        tiny.write_image(folder / name, 60 + 20 * number, 90, seed=number)
    found = records(prefix)
    lines = "".join(json.dumps(record) + "\n" for record in found)
    (folder / "lines.jsonl").write_text(lines)
    (folder / "array.json").write_text(json.dumps(found))
    (folder / "packed.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pq.write_table(pa.Table.from_pylist(found), folder / "table.parquet")
    with tarfile.open(folder / "samples.tar", "w") as archive:
        for number in range(4):
            (folder / "one.json").write_text(json.dumps(tiny.record(["0.png"], "<image>?", "yes")))
            archive.add(folder / "one.json", f"{number}.json")
            archive.add(folder / "a.png", f"{number}.0.png")


def upload(client: Any, folder: Path, prefix: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            client.put_object(Bucket="bucket", Key=f"{prefix}/{path.relative_to(folder)}", Body=path.read_bytes())


def assert_same(found: tuple[Corpus, CheckReport], expected: tuple[Corpus, CheckReport]) -> None:
    """Everything but the places is equal, to the pixels."""
    (corpus, report), (local, local_report) = found, expected
    assert (report.samples, report.ok, report.shrunk) == (local_report.samples, local_report.ok, local_report.shrunk)
    assert [(p.code, p.origin.line) for p in report.problems] == [
        (p.code, p.origin.line) for p in local_report.problems
    ]
    assert len(corpus) == len(local) > 0
    for name in ("tokens", "patches"):
        assert np.array_equal(getattr(corpus.lengths, name), getattr(local.lengths, name))
    loaded = 0
    for index in range(len(corpus)):
        for name in ("input_ids", "supervised", "position_ids", "grids"):
            assert np.array_equal(getattr(corpus.layout(index), name), getattr(local.layout(index), name))
        for image, other in zip(corpus.images(index), local.images(index), strict=True):
            size, resized = (other.height, other.width), (other.resized_height, other.resized_width)
            assert storage.is_remote(guarded.path_of(image.location)) or "://" in image.location
            patches = [
                load_patches(place, size, resized, corpus.geometry) for place in (image.location, other.location)
            ]
            assert np.array_equal(*patches)
            loaded += 1
    assert loaded


@pytest.mark.parametrize("name", DATA)
def test_web_files_give_the_local_corpus(site: Site, job: Job, name: str) -> None:
    write_site(site.folder)
    local = job.load(Source(str(site.folder / name)))
    assert_same(job.load(Source(f"{site.address}/{name}", allow_remote=True)), local)


@pytest.mark.parametrize("name", DATA)
def test_objects_of_a_store_give_the_local_corpus(store: Any, job: Job, tmp_path: Path, name: str) -> None:
    write_site(tmp_path)
    upload(store, tmp_path, f"data-{name}")
    local = job.load(Source(str(tmp_path / name)))
    assert_same(job.load(Source(f"s3://bucket/data-{name}/{name}", allow_remote=True)), local)


@pytest.mark.parametrize("by", ["address", "media_dir"])
@pytest.mark.parametrize("kind", ["http", "s3"])
def test_a_local_file_may_name_remote_images(
    site: Site, store: Any, job: Job, tmp_path: Path, kind: str, by: str
) -> None:
    write_site(site.folder)
    upload(store, site.folder, "images")
    root = site.address if kind == "http" else "s3://bucket/images"
    own = tmp_path / "own.json"
    local = job.load(Source(str(site.folder / "array.json")))
    if by == "address":
        quoted = [json.loads(json.dumps(record)) for record in records()]
        for record in quoted:
            record["images"] = [storage.join(root, name) for name in record["images"]]
        own.write_text(json.dumps(quoted))
        source = Source(str(own), allow_remote=True, allow_private=True)
    else:
        own.write_text(json.dumps(records()))
        source = Source(str(own), media_dir=root, allow_remote=True, confine=True)
    assert_same(job.load(source), local)


def test_nothing_is_asked_of_the_network_uninvited(site: Site, job: Job, tmp_path: Path) -> None:
    write_site(site.folder)
    own = tmp_path / "own.json"
    found = [
        tiny.record([f"{site.address}/a.png"], "<image>?", "yes"),
        tiny.record(["a.png"], "<image>?", "yes"),
        tiny.record([str(tmp_path / "absent.png")], "<image>?", "yes"),
    ]
    own.write_text(json.dumps(found))
    for media_dir in (site.address, f"{site.address}/samples.tar"):
        _, report = job.load(Source(str(own), media_dir=media_dir))
        assert [problem.code for problem in report.problems] == ["image-missing"] * 3
        assert "data.allow_remote: true" in report.problems[1].message
    for name in (*DATA, "*.jsonl"):
        with pytest.raises(ConfigError, match=r"data\.allow_remote: true"):
            job.load(Source(f"{site.address}/{name}"))
    assert site.asked == []
    job.load(Source(str(own), media_dir=site.address, allow_remote=True))
    assert site.asked, "the server would have noticed"


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_a_large_image_costs_few_bytes_and_then_none(site: Site, job: Job, tmp_path: Path, ending: str) -> None:
    side = 2100 if ending == "png" else 3900
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    options = {"compress_level": 1} if ending == "png" else {"quality": 90}
    Image.fromarray(noise).save(site.folder / f"large.{ending}", **options)
    assert (site.folder / f"large.{ending}").stat().st_size > 11_000_000
    own = tmp_path / "own.json"
    own.write_text(json.dumps([tiny.record([f"large.{ending}"], "<image>?", "yes")]))
    source = Source(str(own), media_dir=site.address, allow_remote=True)
    corpus, _ = job.load(source)
    (image,) = corpus.images(0)
    assert (image.height, image.width) == (side, side)
    assert site.sent < 200_000
    assert len(site.asked) <= 4
    site.forget()
    assert len(job.load(source)[0]) == 1
    assert site.asked == []


def test_many_images_are_measured_at_once(site: Site, job: Job, tmp_path: Path) -> None:
    for number in range(64):
        tiny.write_image(site.folder / f"{number}.png", 40, 40 + number)
    own = tmp_path / "own.json"
    own.write_text(json.dumps([tiny.record([f"{number}.png"], "<image>?", "yes") for number in range(64)]))
    source = Source(str(own), media_dir=site.address, allow_remote=True)
    site.delay = 0.05
    corpus, _ = job.load(source)
    assert len(corpus) == 64
    assert len(site.asked) == 64
    assert site.most_in_flight >= 8, f"at most {site.most_in_flight} requests at once"


def problem_of(job: Job, tmp_path: Path, address: str) -> tuple[str, str]:
    own = tmp_path / "own.json"
    own.write_text(json.dumps([tiny.record([address], "<image>?", "yes"), tiny.record([], "hi", "yes")]))
    corpus, report = job.load(Source(str(own), allow_remote=True, allow_private=True))
    assert len(corpus) == 1
    (problem,) = report.problems
    assert address in problem.message
    return problem.code, problem.message


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (404, "image-missing", "no file"),
        (410, "image-missing", "no file"),
        (403, "image-unreadable", "the server answers 403 Forbidden"),
        (401, "image-unreadable", "the server answers 401 Unauthorized"),
        (503, "image-unreadable", "the server answers 503 Service Unavailable"),
    ],
)
def test_a_refusal_is_a_problem_of_the_sample(
    site: Site, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, code: str, says: str
) -> None:
    monkeypatch.setattr(web, "PAUSES", (0.01,))
    write_site(site.folder)
    site.answers["a.png"] = status
    found, message = problem_of(job, tmp_path, f"{site.address}/a.png")
    assert (found, says in message) == (code, True), message
    site.answers.clear()
    corpus, report = job.load(Source(str(tmp_path / "own.json"), allow_remote=True, allow_private=True))
    assert (len(corpus), report.problems) == (2, []), "what failed once is tried again at the next start"


def test_a_server_that_stumbles_is_asked_again(
    site: Site, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "PAUSES", (0.01, 0.01))
    write_site(site.folder)
    site.answers, site.times = {"a.png": 503}, 2
    own = tmp_path / "own.json"
    own.write_text(json.dumps([tiny.record([f"{site.address}/a.png"], "<image>?", "yes")]))
    corpus, report = job.load(Source(str(own), allow_remote=True, allow_private=True))
    assert (len(corpus), report.problems) == (1, [])


@pytest.mark.parametrize("kind", ["down", "silent"])
def test_a_server_that_does_not_answer_is_given_up(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(web, "PAUSES", (0.01,))
    monkeypatch.setattr(web, "READ_SECONDS", 0.3)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if kind == "silent":
            listener.listen()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        began = time.monotonic()
        code, message = problem_of(job, tmp_path, f"{address}/a.png")
        assert (code, "Traceback" in message, len(message) < 400) == ("image-unreadable", False, True)
        with pytest.raises(ConfigError, match="cannot read"):
            job.load(Source(f"{address}/a.jsonl", allow_remote=True))
        assert time.monotonic() - began < 10


def test_a_store_that_lacks_an_object_or_is_down_gives_problems(
    store: Any, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del store
    filesystem = fsspec.get_filesystem_class("s3")
    monkeypatch.setattr(filesystem, "read_timeout", 0.1)
    assert problem_of(job, tmp_path, "s3://bucket/absent.png")[0] == "image-missing"
    code, message = problem_of(job, tmp_path, "s3://no-such-bucket/absent.png")
    assert (code, "bucket does not exist" in message) == ("image-unreadable", True), message
    with pytest.raises(ConfigError, match="no data file matches"):
        job.load(Source("s3://bucket/absent.jsonl", allow_remote=True))
    for silent in (False, True):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            if silent:
                listener.listen()
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
            filesystem.clear_instance_cache()
            began = time.monotonic()
            code, message = problem_of(job, tmp_path, "s3://bucket/down.png")
            assert (code, "timeout" in message if silent else "connect" in message) == ("image-unreadable", True), (
                message
            )
            assert time.monotonic() - began < 20
    filesystem.clear_instance_cache()


def test_an_address_may_hold_a_signature_and_credentials(site: Site, job: Job, tmp_path: Path) -> None:
    write_site(site.folder)
    target = "/sub/d%C3%A9.png?X-Amz-Date=20240101T000000Z&X-Amz-Signature=a%2Fb%2Bc%3D&x=1"
    host = site.address.removeprefix("http://")
    own = tmp_path / "own.json"
    own.write_text(json.dumps([tiny.record([f"http://me:pass@{host}{target}"], "<image>?", "yes")]))
    corpus, report = job.load(Source(str(own), allow_remote=True, allow_private=True))
    assert (len(corpus), report.problems) == (1, [])
    assert {asked for _, asked, _ in site.asked} == {target}, "as it was signed"
    assert {given for _, _, given in site.asked} == {f"Basic {base64.b64encode(b'me:pass').decode()}"}


@pytest.mark.parametrize("name", DATA)
def test_a_data_file_may_have_a_signed_address(site: Site, job: Job, name: str) -> None:
    write_site(site.folder)
    local = job.load(Source(str(site.folder / name)))
    assert_same(job.load(Source(f"{site.address}/{name}?X-Amz-Signature=a/b%2Fc", allow_remote=True)), local)


def test_a_server_without_ranges_is_read_whole(site: Site, job: Job) -> None:
    write_site(site.folder)
    site.ranges = False
    local = job.load(Source(str(site.folder / "lines.jsonl")))
    assert_same(job.load(Source(f"{site.address}/lines.jsonl", allow_remote=True)), local)


def test_members_of_a_remote_tar_cost_no_question_about_it_each(site: Site, job: Job) -> None:
    write_site(site.folder)
    source = Source(f"{site.address}/samples.tar", allow_remote=True)
    job.load(source)
    site.forget()
    job.load(source)
    assert len(site.asked) <= 4, "the start asks whether the file changed, not for its images"
