"""``triptych check``: every defect at its line with its code, nothing else, and nothing heavy imported."""

import base64
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

import tiny
from triptych.cli import app
from triptych.errors import Code, ConfigError, ModelError

GOOD = 200
NONE_ODD = {"turned": 0, "alpha": 0, "deep_grey": 0}
Defects = list[tuple[str, Any]]


def check(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


def check_json(*arguments: object) -> tuple[int, dict[str, Any]]:
    result = check("--json", *arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, json.loads(result.stdout)


def exchange(question: Any, answer: Any, **extra: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **extra}


def place_of(problem: dict[str, Any]) -> int:
    """The line, or in an array the element."""
    return int(problem.get("element", problem["line"]))


def write(path: Path, records: list[Any]) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(records, ensure_ascii=False, indent=1), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def write_media(folder: Path) -> None:
    """Four good images, and one file for each way of not being one."""
    media = folder / "media"
    for number in range(4):
        tiny.write_image(media / f"good-{number}.{'jpg' if number % 2 else 'png'}", 60 + 10 * number, 90, seed=number)
    jpeg, png = ((media / name).read_bytes() for name in ("good-1.jpg", "good-0.png"))
    (media / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (media / "cut.png").write_bytes(png[: len(png) // 2])
    (media / "header.png").write_bytes(png[:20])
    (media / "empty.jpg").touch()
    (media / "text.png").write_text("<html>404 Not Found</html>")
    (media / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    Image.new("1", (20_000, 10_000)).save(media / "bomb.png")
    tiny.image(2, 410).save(media / "wide.png")
    tiny.image(410, 2).save(media / "tall.png")
    (media / "folder.png").mkdir()
    tiny.write_image(folder / "outside.png", 60, 60)
    (media / "link.png").symlink_to(folder / "outside.png")


def data_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def good_records() -> list[dict[str, Any]]:
    records = []
    for number in range(GOOD):
        images = [f"good-{(number + k) % 4}.{'jpg' if (number + k) % 2 else 'png'}" for k in range(number % 4)]
        question = "".join(f"{'<image>'}Image {k + 1}? " for k in range(len(images))) or "No image?"
        records.append(tiny.record(images, question, tiny.ANSWERS[number % 5], task=f"t{number % 3}"))
    return records


def defects(folder: Path) -> Defects:
    """(code, record) of several defects of every code."""

    def image(name: str) -> dict[str, Any]:
        return tiny.record(["good-0.png", name], "<image><image>Same?", "yes")

    buffer = io.BytesIO()
    tiny.image(40, 40).save(buffer, "PNG")
    turn = {"role": "user", "content": "x"}
    shapes: list[Any] = [
        {},
        [],
        "text",
        None,
        {"messages": "hi"},
        {"messages": [turn, 5]},
        {"messages": [{"role": ["user"], "content": "x"}]},
        exchange("x", {"text": "y"}),
        exchange("x", "y", images=7),
        exchange("x", "y", videos=["a.mp4"]),
        exchange([{"type": "audio", "audio": "a.mp3"}], "y"),
    ]
    marks = [
        tiny.record(["good-0.png"], "no mark", "yes"),
        tiny.record(["good-0.png"], "<image><image>", "yes"),
        tiny.record([], "<image>", "yes"),
        exchange([{"type": "image"}, {"type": "text", "text": "<image>"}], "y", images=["good-0.png"] * 2),
    ]
    orders = [
        {"messages": [turn]},
        {"messages": [turn, turn, {"role": "assistant", "content": "y"}]},
        {"messages": [turn, {"role": "assistant", "content": "y"}, {"role": "assistant", "content": "y"}]},
        {"messages": [*exchange("x", "y")["messages"], turn]},
    ]
    answers = [exchange("x", ""), exchange("x", " \n"), exchange("x", []), tiny.record(["good-0.png"], "x", "<image>")]
    missing = [
        "gone.png",
        "no/such/folder.png",
        "folder.png",
        "x" * 300,
        "nul\0.png",
        "https://example.com/a.png",
        "file://[",
    ]
    unreadable = ["cut.jpg", "cut.png", "header.png", "empty.jpg", "text.png", "broken.png", "bomb.png"]
    inline = [
        "data:image/png;base64,!!!",
        "data:image/png;base64,é",
        "data:image/png,raw",
        data_uri(b"not an image"),
        data_uri(buffer.getvalue()[:-30]),
    ]
    outside = [str(folder / "outside.png"), "../outside.png", "link.png", f"file://{folder}/outside.png"]
    return [
        *(("bad-shape", record) for record in shapes),
        *(("marker-count", record) for record in marks),
        *(("role-order", record) for record in orders),
        *(("empty-answer", record) for record in answers),
        *(("image-missing", image(name)) for name in missing),
        *(("image-unreadable", image(name)) for name in [*unreadable, *inline]),
        *(("image-extreme", image(name)) for name in ("wide.png", "tall.png")),
        *(("image-outside", image(name)) for name in outside),
        (
            "box-outside",
            {**tiny.record(["good-0.png"], "<image>Where?", "<bbox>"), "objects": {"bbox": [[0, 0, 999, 9]]}},
        ),
        (
            "box-outside",
            {**tiny.record(["good-0.png"], "<image>Where?", "<bbox>"), "objects": {"bbox": [[-4, 0, 9, 9]]}},
        ),
        ("too-long", tiny.record([], "word " * 2000, "yes")),
        ("too-long", tiny.record(["good-0.png"], "<image>?", "word " * 2000)),
    ]


def plant(folder: Path, planted: Defects, suffix: str) -> tuple[Path, list[tuple[str, int]]]:
    """A data file of good records with the defects spread among them, and (code, line) of each defect."""
    lines = np.random.default_rng(0).choice(np.arange(1, GOOD + len(planted) + 1), len(planted), replace=False).tolist()
    at = dict(zip(lines, planted, strict=True))
    good = iter(good_records())
    records = [at[line][1] if line in at else next(good) for line in range(1, GOOD + len(planted) + 1)]
    return write(folder / f"data{suffix}", records), sorted(
        ((code, line) for line, (code, _) in at.items()), key=lambda place: place[1]
    )


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("check")
    write_media(folder)
    return folder


def write_run(folder: Path, model: Path, data: Path, **limits: Any) -> Path:
    source = {"path": str(data), "media_dir": str(folder / "media"), "confine": True}
    return tiny.write_run(folder, model, data, data={"train": [source], **limits})


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_every_planted_defect_is_reported_at_its_line_and_nothing_else(
    media: Path, model_dir: Path, suffix: str
) -> None:
    planted = defects(media)
    assert {code for code, _ in planted} == set(get_args(Code)) - {"sample-gone"}, "a defect of every code of a record"
    data, expected = plant(media, planted, suffix)
    run = write_run(media, model_dir, data, too_long="error", max_tokens=1000)

    code, result = check_json(run)
    assert code == 1
    assert (result["samples"], result["ok"]) == (GOOD + len(planted), GOOD)
    assert [(problem["code"], place_of(problem)) for problem in result["problems"]] == expected
    assert result["dropped"] == []
    for problem in result["problems"]:
        element = f", element {problem['element']}" if "element" in problem else ""
        assert problem["origin"] == f"{data}:{problem['line']}{element}"
        assert problem["path"] == str(data)
        assert len(problem["message"]) > 10
        if problem["code"].startswith("image-"):
            assert problem["image"] == 2

    shown = check(run, "--all")
    assert shown.exit_code == 1
    assert shown.stdout == ""
    lines = [line for line in shown.stderr.splitlines() if line.startswith(str(data))]
    form = re.compile(rf"{re.escape(str(data))}:(\d+)(?:, element (\d+))?(?:, \w+ \d+)*: ([a-z-]+): ")
    found = [cast(re.Match[str], form.match(line)) for line in lines]
    assert [(place[3], int(place[2] or place[1])) for place in found] == expected


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_data_files_are_checked_without_a_model(media: Path, suffix: str) -> None:
    planted = [(code, record) for code, record in defects(media) if code not in ("image-outside", "too-long")]
    data, expected = plant(media, planted, suffix)
    code, result = check_json(data, "--media-dir", media / "media")
    assert code == 1
    assert [(problem["code"], place_of(problem)) for problem in result["problems"]] == expected


def test_good_data_exits_0_and_says_what_is_there(media: Path, model_dir: Path) -> None:
    data = write(media / "good.json", good_records())
    result = check(write_run(media, model_dir, data))
    assert result.exit_code == 0
    assert f"{GOOD} samples, {GOOD} ok\n" in result.stderr
    assert "images per sample: 0: 50, 1: 50, 2: 50, 3: 50" in result.stderr
    assert "tokens per sample: median" in result.stderr
    twice = {"split": "data", "other": "data", "samples": {"same-images": 147, "shared-image": 1}}  # few image files
    assert check_json(data, "--media-dir", media / "media") == (
        0,
        {
            "samples": GOOD,
            "ok": GOOD,
            "problems": [],
            "dropped": [],
            "hints": [],
            "images": NONE_ODD,
            "leaks": [twice],
        },
    )


def test_the_good_records_fit_the_limit_that_finds_the_long_ones(media: Path, model_dir: Path) -> None:
    data = write(media / "good.json", good_records())
    assert check_json(write_run(media, model_dir, data, too_long="error", max_tokens=1000))[0] == 0


def test_all_sources_of_both_splits_are_checked(media: Path, model_dir: Path) -> None:
    one = write(media / "one.json", [tiny.record([], "<image>", "yes")])
    two = write(media / "two.jsonl", [tiny.record([], "hi", "yes"), tiny.record([], "hi", "")])
    run = tiny.write_run(media, model_dir, one, data={"train": [{"path": str(one)}], "eval": [{"path": str(two)}]})
    code, result = check_json(run)
    assert code == 1
    assert [problem["origin"] for problem in result["problems"]] == [f"{one}:2, element 1", f"{two}:2"]


@pytest.mark.parametrize(
    ("too_long", "status", "problems", "dropped"), [("shrink", 0, [], []), ("error", 1, [2], []), ("drop", 0, [], [2])]
)
def test_twelve_large_images_are_shrunk_refused_or_dropped_as_the_run_says(
    tmp_path: Path, model_dir: Path, too_long: str, status: int, problems: list[int], dropped: list[int]
) -> None:
    for number in range(12):
        Image.new("RGB", (1600, 1200), (number * 20, 0, 0)).save(tmp_path / f"{number}.png")
    large = tiny.record([f"{number}.png" for number in range(12)], "<image>" * 12 + "Which?", "The first.")
    data = write(tmp_path / "data.json", [tiny.record([], "hi", "yes"), large, tiny.record([], "hi", "no")])
    run = tiny.write_run(tmp_path, model_dir, data, data={"max_tokens": 2048, "too_long": too_long})
    code, result = check_json(run)
    assert code == status
    assert [(problem["code"], place_of(problem)) for problem in result["problems"]] == [
        ("too-long", n) for n in problems
    ]
    assert [place_of(problem) for problem in result["dropped"]] == dropped
    shown = check(run).stderr
    assert ("images of 1 shrunk" in shown) == (too_long == "shrink")
    assert ("1 dropped as too long" in shown) == (too_long == "drop")


MALFORMED = {
    "broken array": (b'[{"messages": []}, {"messa', 3),
    "broken line": (b'{"messages": []}\n{"messa\n', 2),
    "other values": (b'1\n"x"\nnull\n[1]\n', 4),
    "not UTF-8": (b'{"messages": "\xe9"}', 1),
    "UTF-16": ("[5]".encode("utf-16"), 1),
    "lone surrogate": (b'{"messages": "\\ud800"}', 1),
    "not a number": (b'{"messages": NaN}', 1),
    "deep nesting": (b'{"messages": ' + b"[" * 5000, 1),
    "as deep as is read": (b'{"messages": [{"content": "", "role": ' + b"[" * 1000 + b"]" * 1000 + b"}]}", 1),
    "NUL": (b"\0", 1),
    "pretty wrapper": (b'{\n "data": [\n  {"messages": []}\n ]\n}', 1),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_problems_and_no_traceback(tmp_path: Path, name: str) -> None:
    content, count = MALFORMED[name]
    (tmp_path / "data.jsonl").write_bytes(content)
    code, result = check_json(tmp_path / "data.jsonl")
    assert code == 1
    assert len(result["problems"]) == count
    assert {problem["code"] for problem in result["problems"]} == {"bad-shape"}


@pytest.mark.parametrize("line", [100, 1234])
def test_a_line_number_stays_a_number_on_the_terminal(tmp_path: Path, line: int) -> None:
    (tmp_path / "data.jsonl").write_text("\n" * (line - 1) + "{}\n")
    assert f"data.jsonl:{line}: bad-shape: " in check(tmp_path / "data.jsonl").stderr


def test_markup_and_control_characters_of_the_data_are_not_obeyed(tmp_path: Path) -> None:
    record = tiny.record(["[red]\x1b[2J\n:cat:.png"], "<image>?", "yes")
    shown = check(write(tmp_path / "data.json", [record])).stderr
    assert r"[red]\x1b[2J\n:cat:.png" in shown
    assert "\x1b[2J" not in shown


def test_the_json_is_utf_8_whatever_the_terminal(tmp_path: Path) -> None:
    data = write(tmp_path / "图.json", [tiny.record(["图.png"], "<image>?", "yes")])
    command = [sys.executable, "-m", "triptych", "check", "--json", str(data)]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout)["problems"][0]["path"] == str(data)


def test_arguments_that_cannot_be_used_are_refused(media: Path, model_dir: Path) -> None:
    data = write(media / "good.json", good_records())
    run = write_run(media, model_dir, data)
    for arguments in (
        [media / "gone.json"],
        [media / "gone.yaml"],
        [run, run],
        [run, data],
        [run, "--media-dir", media],
        [run, "train.epohcs=3"],
        [run, "data.max_pixels=5"],
    ):
        assert isinstance(check(*arguments).exception, ConfigError), arguments
    assert isinstance(check(run, "model.path=/gone").exception, ModelError)
    assert check(run, "data.max_tokens=5000").exit_code == 0


def python(*lines: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)


def test_a_mistake_of_the_user_ends_without_a_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "triptych", "check", str(tmp_path / "gone.json")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("triptych: no data file matches")
    assert "Traceback" not in done.stderr


def test_checking_imports_neither_torch_nor_transformers(media: Path, model_dir: Path) -> None:
    run = write_run(media, model_dir, write(media / "good.json", good_records()))
    done = python(
        "import sys",
        "from triptych.cli import app",
        f"app(['check', {str(run)!r}], standalone_mode=False)",
        "print(sorted({'torch', 'transformers', 'peft', 'accelerate'} & set(sys.modules)))",
    )
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
    assert f"{GOOD} ok" in done.stderr


def test_help_starts_without_any_heavy_import() -> None:
    done = python(
        "import sys",
        "from triptych.cli import app",
        "app(['--help'], standalone_mode=False)",
        "print(sorted({'torch', 'transformers', 'pydantic', 'numpy', 'PIL', 'pyarrow'} & set(sys.modules)))",
    )
    assert "check" in done.stdout
    assert done.stdout.endswith("[]\n"), done.stderr
