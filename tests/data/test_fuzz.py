"""Thousands of mutated records at once: each is a sample or has a problem with its line, and nothing else happens."""

import random
from pathlib import Path
from typing import Any, get_args

import orjson
import pytest
from test_samples import (
    ADDRESSES,
    BAD_FILES,
    GOOD,
    GOOD_FILES,
    INLINE,
    INNER_KEYS,
    OUTER_KEYS,
    PATHS,
    SPECIAL_FILES,
    places,
    write_files,
)

from triptych.corpus.examine import Encoder
from triptych.corpus.execution.executor import LocalEngine
from triptych.corpus.loading import load_or_build
from triptych.errors import Code
from triptych.family.family import read_model_files
from triptych.sources.records import Source
from triptych.text.layout import Budget

PER_FILE = 500
CODES = set(get_args(Code))
Place = tuple[int, int]
"""Line, and number within a list on that line"""

NAMES = [*GOOD_FILES, *BAD_FILES, *SPECIAL_FILES, *PATHS, *ADDRESSES, *INLINE]
TEXTS = [
    "<image_1>",
    "<img>a.png</img>",
    "![](a.png)",
    '["a.png"]',
    "[[]]",
    "{",
    '{"bytes": "AAAA"}',
    "<image>",
    "<image><image>",
    "hi",
    "",
    " ",
    "<|im_end|>",
    "<|image_pad|>",
    "图",
    "\0",
    "\u2028",
    "a\r\nb",
    "𝄞",
]
GOOD = [
    *GOOD,
    {"prompt": [{"role": "user", "content": "<image>?"}], "completion": "yes", "images": [{"path": "a.png"}]},
    {"query": "<image>?", "response": "yes", "history": [["Hi", "Hello"]], "images": [["b.jpg"]]},
    {"instruction": "Which?", "input": "<image>", "output": "this", "image": "a.png"},
    {"texts": [{"user": "<image>?", "assistant": "yes"}, {"user": "And?", "assistant": "no"}], "images": '["a.png"]'},
    {"question": "One of <image>?", "options": ["one", "two"], "answer": "B", "images": ["a.png"]},
    {"messages": [{"role": "user", "content": "x", "images": ["a.png"]}, {"role": "assistant", "content": "y"}]},
    {
        "messages": [
            {"role": "user", "content": [{"type": "image", "index": 1}, {"type": "image", "index": 0}, {"text": "?"}]},
            {"role": "assistant", "content": "yes", "weight": 1},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "b.jpg"}}, {"image": "a.png"}]},
            {"role": "assistant", "content": "<img>a.png</img>", "train": False},
        ],
        "images": ["a.png", None, "b.jpg"],
        "imgs": [],
    },
]
SOURCES: list[dict[str, Any]] = [
    {},
    {},
    {"marks": "auto", "roles": "merge"},
    {"marks": "first", "roles": "keep", "ignore": ["imgs", "videos"]},
    {"mark": "<image_{n}>", "columns": {"images": "image_{n}"}},
    {
        "columns": {"images": ["images", "image_1"], "messages": "conversation"},
        "tags": {"role": "from", "user": "text"},
    },
    {"choice": {"options": ["A", "text"]}},
    {"choice": {}},
]
WORDS = ["user", "assistant", "system", "human", "gpt", "function", "text", "image", "image_url", "video"]
NUMBERS = [0, 1, -1, 2**63 - 1, -(2**63), 2**64 - 1, 1e308, 5e-324, -0.0]
PLAIN: list[Any] = [None, True, False, *NUMBERS, *NAMES, *TEXTS, *WORDS]
SHAPE_KEYS = [
    "prompt",
    "completion",
    "query",
    "response",
    "history",
    "texts",
    "question",
    "answer",
    "options",
    "choices",
]
SHAPE_KEYS += [
    "imgs",
    "image_1",
    "image_2",
    "weight",
    "train",
    "label",
    "objects",
    "chosen",
    "index",
    "bytes",
    "path",
    "A",
]
KEYS = [*OUTER_KEYS, *INNER_KEYS, *SHAPE_KEYS, "", "\0", "id", "loss", "conversation", "data_path", "system_prompt"]
BYTES = [*(bytes([code]) for code in b'"\\{}[],:\0\r '), b"\xff", b"\xed\xa0\x80", b"\\ud800", b"1e999"]


def value(chance: random.Random, depth: int = 0) -> Any:
    """Any JSON value."""
    kind = chance.random()
    if depth > 3 or kind < 0.6:
        return chance.choice(PLAIN)
    if kind < 0.8:
        return [value(chance, depth + 1) for _ in range(chance.randrange(4))]
    return {chance.choice(KEYS): value(chance, depth + 1) for _ in range(chance.randrange(4))}


def mutated_record(chance: random.Random) -> Any:
    """A good record after some changes at random places; now and then anything at all."""
    if chance.random() < 0.03:
        return value(chance)
    record = orjson.loads(orjson.dumps(chance.choice(GOOD)))
    for _ in range(chance.randrange(4)):
        found = list(places(record))
        if not found:
            break
        container, key = chance.choice(found)
        match chance.choice(["replace", "remove", "repeat", "wrap", "rename", "name"]):
            case "replace":
                container[key] = value(chance)
            case "remove":
                del container[key]
            case "repeat" if isinstance(container, list):
                container.insert(key, orjson.loads(orjson.dumps(container[key])))
            case "wrap":
                container[key] = [container[key]]
            case "rename" if isinstance(container, dict):
                container[chance.choice(KEYS)] = container.pop(key)
            case "name":
                container[key] = chance.choice(NAMES)
    return record


def mutated_text(chance: random.Random) -> bytes:
    """A line of JSON, in one of three with some bytes changed; no line end in it."""
    text = orjson.dumps(mutated_record(chance))
    if chance.random() < 0.67:
        return text
    for _ in range(chance.randrange(1, 4)):
        place = chance.randrange(len(text) + 1)
        gone = chance.choice([0, 0, 1, 1, 2, len(text)])
        text = text[:place] + chance.choice([*BYTES, b"", chance.randbytes(2)]) + text[place + gone :]
    return text.replace(b"\n", b" ")


@pytest.fixture(scope="module")
def encoder(model_dir: Path) -> Encoder:
    files = read_model_files(str(model_dir))
    return Encoder(files.template(), files.geometry, Budget(max_tokens=200))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("fuzz"))


def examine(path: Path, cache: Path, encoder: Encoder, options: dict[str, Any]) -> tuple[list[Place], list[Place]]:
    """Places of the samples, and of the problems that have one."""
    source = Source(str(path), **options)
    corpus, report = load_or_build([source], encoder, cache, LocalEngine(1))
    good = [(origin.line, origin.item) for origin in map(corpus.origin, range(len(corpus)))]
    for problem in report.problems:
        assert problem.code in CODES
        assert problem.origin.path == str(path)
        assert 10 < len(problem.message) < 3000
        orjson.dumps(problem.to_dict())
    for index in range(0, len(corpus), 10):  # and it can be laid out
        assert len(corpus.layout(index).input_ids) == corpus.lengths.tokens[index] <= 200
    bad = [(problem.origin.line, problem.origin.item) for problem in report.problems if problem.origin.line]
    assert report.ok == len(good)
    assert report.samples == len({*good, *bad}) == len(good) + len({*bad}), "a record is a sample, or has a problem"
    return good, bad


def fuzz(folder: Path, cache: Path, encoder: Encoder, seeds: range) -> None:
    """Examine a file of lines, the same records as an array, and that array with bytes changed, for each seed."""
    outcomes = {"good": 0, "bad": 0}
    for seed in seeds:
        chance = random.Random(seed)
        options = {"confine": chance.random() < 0.5, **SOURCES[seed % len(SOURCES)]}
        lines = [orjson.dumps(GOOD[0]), *(mutated_text(chance) for _ in range(PER_FILE - 1))]
        path = folder / f"{seed}.jsonl"
        path.write_bytes(b"\n".join(lines))
        good, bad = examine(path, cache, encoder, options)
        texts = [number for number, line in enumerate(lines, 1) if line and not line.isspace()]
        assert sorted({line for line, _ in (*good, *bad)}) == texts, f"seed {seed}: no line without a word"
        assert bad == sorted(bad), f"seed {seed}: in input order"
        broken = {number for number, line in enumerate(lines, 1) if not is_json(line)}
        assert broken.isdisjoint(line for line, _ in good), f"seed {seed}"

        valid = [number for number in texts if is_json(lines[number - 1])]
        array = b"[" + b",\n".join(lines[number - 1] for number in valid) + b"]"
        (folder / f"{seed}.json").write_bytes(array)
        as_array, _ = examine(folder / f"{seed}.json", cache, encoder, options)
        assert [(valid[number - 1], item) for number, item in as_array] == good, (
            f"seed {seed}: an array gives what lines give"
        )

        place = chance.randrange(len(array))
        array = array[:place] + chance.choice(BYTES) + array[place + chance.randrange(3) :]
        (folder / f"{seed}-broken.json").write_bytes(array)
        examine(folder / f"{seed}-broken.json", cache, encoder, options)
        for name in (f"{seed}.jsonl", f"{seed}.json", f"{seed}-broken.json"):
            (folder / name).unlink()
        if seed % len(SOURCES) > 1:
            continue  # a source of its own naming: most records are none of it
        outcomes["good"] += len(good)
        outcomes["bad"] += len({*bad})
    assert min(outcomes.values()) > 0.1 * sum(outcomes.values()), f"samples and problems, many of both: {outcomes}"


def is_json(line: bytes) -> bool:
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True


def test_five_thousand_mutated_records(folder: Path, tmp_path: Path, encoder: Encoder) -> None:
    fuzz(folder, tmp_path, encoder, range(10))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_mutated_records(folder: Path, tmp_path: Path, encoder: Encoder) -> None:
    fuzz(folder, tmp_path, encoder, range(10, 210))
