"""Nothing in the data steers a terminal or fakes a line of a log; a run file of nine lines takes no memory."""

import io
import json
from pathlib import Path

import pytest

import tiny
from triptych.commands.chat import tell
from triptych.commands.check import check
from triptych.errors import ConfigError, DataError, Origin, Problem, printable, printable_json
from triptych.run import run_file
from triptych.run.prepare import append_rejected
from triptych.run.reporter import LogReporter
from triptych.terminal import Terminal

HOSTILE = "\x1b[2J\x1b]0;title\x07\r\x9b1A\x7f\u202egnp.exe\u2066\x00\u2028"


def raw(text: str) -> list[str]:
    """Characters that a terminal obeys."""
    return [c for c in text if (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 or c in "\u2028\u202e\u2066"]


def shown() -> tuple[Terminal, io.StringIO]:
    file = io.StringIO()
    terminal = Terminal()
    terminal.console.file = file
    return terminal, file


def test_what_is_printable_stays_and_the_rest_is_named() -> None:
    assert printable("图 é\tx: [red]") == "图 é\tx: [red]"
    assert printable("a\nb") == "a\\nb".replace("\\n", "\\x0a")
    assert printable("a\nb\x1b", lines=True) == "a\nb\\x1b"
    assert printable(printable(HOSTILE)) == printable(HOSTILE)
    assert raw(printable(HOSTILE)) == []
    assert json.loads(printable_json(json.dumps({HOSTILE: HOSTILE}, ensure_ascii=False))) == {HOSTILE: HOSTILE}
    assert raw(printable_json(json.dumps(HOSTILE, ensure_ascii=False))) == []


def test_problems_and_errors_carry_no_control_character() -> None:
    problem = Problem("bad-shape", Origin(f"data{HOSTILE}.json", 3), f"the key {HOSTILE}\nok: 100 samples")
    assert raw(str(problem)) == []
    assert "\n" not in str(problem), "a message cannot fake the next line"
    for error in (DataError([problem]), ConfigError(f"no {HOSTILE}")):
        assert raw(str(error)) == []


def test_neither_a_terminal_nor_a_log_gets_any(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    terminal, file = shown()
    caplog.set_level("INFO", "triptych")
    for reporter in (terminal, LogReporter()):
        reporter.line(f"model: {HOSTILE}")
        reporter.table(f"Sources {HOSTILE}", ("path", "rows"), [(f"a[red]{HOSTILE}", "1")])
    assert raw(file.getvalue()) == []
    assert "a[red]" in file.getvalue(), "nor is it taken for markup"
    assert raw(caplog.text) == []
    append_rejected(tmp_path, [Problem("bad-shape", Origin(f"{HOSTILE}.json", 1), HOSTILE)])
    lines = (tmp_path / "rejected.jsonl").read_text().splitlines()
    assert raw("".join(lines)) == []
    assert json.loads(lines[0])["message"] == HOSTILE, "machines read what was there"


@pytest.mark.parametrize("as_json", [False, True])
def test_check_of_hostile_records_prints_none(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], as_json: bool
) -> None:
    hostile = HOSTILE.replace("\x00", "")
    records = [
        {**tiny.record([f"{hostile}.png"], "<image>?", "yes"), f"key{hostile}": 1},
        tiny.record([f"http://a/{hostile}"], "<image>?", "yes"),
        {"conversations": [{"from": hostile, "value": hostile}]},
        {f"{hostile}images": ["x.png"], "conversations": []},
        tiny.record(["\0"], "<image>?", "yes"),
    ]
    folder = tmp_path / hostile.replace("/", "")
    folder.mkdir()
    (folder / "data.json").write_text(json.dumps(records))
    assert check([str(folder / "data.json")], as_json=as_json) == 1
    printed = "".join(stream.decode() for stream in capfdbinary.readouterr())
    assert "bad-shape" in printed
    assert raw(printed) == []


def test_an_answer_of_a_model_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    tell(f"image 1: {HOSTILE}")
    assert raw(capsys.readouterr().err) == []


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (BOMB, "stand for over 100,000 values"),
        ("train: {hf: &a {optim_args: *a}}", "or for themselves"),
        ("a: '" + "x" * (1 << 20) + "'", "over 1,048,576 bytes"),
        ("a: " + "[" * 5000, "not valid YAML"),
    ],
)
def test_a_run_file_that_is_a_bomb_is_refused_at_once(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=says):
        run_file.load(path)
    if len(content) < 1 << 20:
        with pytest.raises(ConfigError, match="not valid YAML"):
            run_file.load(_least(tmp_path), [f"train.hf={{x: {content.strip()}"])


def _least(folder: Path) -> Path:
    return tiny.write_run(folder, folder, folder / "data.json")


def test_plain_aliases_still_work(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "model: {path: m}\ndata: {train: [&one {path: a.json}], eval: [*one]}\nbatch: {samples: 1}\noutput: x\n"
    )
    loaded = run_file.load(path)
    assert loaded.data.eval[0].path == loaded.data.train[0].path
