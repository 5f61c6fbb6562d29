"""The command line as a user meets it: quick, and without tracebacks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import tiny

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SLOW = {"torch", "transformers", "pyarrow", "numpy", "PIL"}
"""What no help may import; typer itself imports pydantic for a command's help."""
HEAVY = ("torch", "transformers", "pyarrow", "pydantic", "numpy", "PIL")


def triptych(*arguments: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Run the command line in a process of its own; also returns which heavy modules it imported."""
    program = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('IMPORTED', *(m for m in {HEAVY} if m in sys.modules), file=sys.stderr))\n"
        "from triptych.cli import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    imported = set(done.stderr.rpartition("IMPORTED")[2].split())
    return done, imported


def test_help_imports_nothing_heavy() -> None:
    done, imported = triptych("--help")
    assert done.returncode == 0
    assert "quickstart" in done.stdout
    assert not imported


def test_train_refuses_defective_data_before_torch_is_imported(small_model_dir: Path, tmp_path: Path) -> None:
    data = tiny.write_dataset(tmp_path, 5)
    records = json.loads(data.read_text())
    records[3]["images"].append("nowhere.png")
    data.write_text(json.dumps(records))
    done, imported = triptych("train", str(tiny.write_run(tmp_path, small_model_dir, data)))
    assert done.returncode == 1
    assert f"{data}:4: marker-count" in done.stderr
    assert "Traceback" not in done.stderr
    assert "torch" not in imported
    assert not (tmp_path / "run" / "final").exists()


def test_a_run_does_not_write_over_the_checkpoints_of_another(small_model_dir: Path, tmp_path: Path) -> None:
    path = tiny.write_run(tmp_path, small_model_dir, tiny.write_dataset(tmp_path, 2))
    (tmp_path / "run" / "checkpoint-3").mkdir(parents=True)
    done, _ = triptych("train", str(path))
    assert done.returncode == 1
    assert "--resume" in done.stderr


def test_evaluating_before_training_says_what_to_do(small_model_dir: Path, tmp_path: Path) -> None:
    data = tiny.write_dataset(tmp_path, 2)
    path = tiny.write_run(tmp_path, small_model_dir, data, data={"eval": [{"path": str(data)}]})
    done, imported = triptych("eval", str(path))
    assert done.returncode == 1
    assert "train first" in done.stderr
    assert "torch" not in imported


def test_the_version_and_what_a_bug_report_needs() -> None:
    done, heavy = triptych("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("triptych ")
    assert not heavy
    done, _ = triptych("env")
    assert done.returncode == 0
    for start in ("python 3.", "device ", "transformers 5.", "cache folder "):
        assert any(line.startswith(start) for line in done.stdout.splitlines()), start


def test_without_arguments_the_four_commands_that_matter_are_shown() -> None:
    done, imported = triptych()
    assert done.returncode == 0
    assert [line.split()[1] for line in done.stdout.splitlines()[:4]] == ["quickstart", "init", "train", "chat"]
    assert not imported & SLOW


def test_every_command_shows_an_example() -> None:
    for command in ("init", "plan", "train", "chat"):
        done, imported = triptych(command, "--help")
        assert f"Example: triptych {command}" in done.stdout
        assert not imported & SLOW


@pytest.mark.parametrize("width", [80, 120])
def test_log_lines_have_columns_of_fixed_width_and_fit_the_terminal(width: int) -> None:
    from triptych.run.reporter import LogLines

    logs = {
        "epoch": 12.34,
        "loss": 12.3456,
        "learning_rate": 1e-4,
        "grad_norm": 123.456,
        "tokens_per_second": 123_456.7,
        "images_per_second": 1_234.5,
        "row_fill": 0.98,
        "data_wait": 0.01,
        "mfu": 0.42,
        "supervised_tokens_per_second": 12_345.6,
        "stored_images": 0.5,
    }
    log = LogLines(width)
    lines = [line for step in range(1, 45) for line in log.lines({**logs, "loss": 10 / step}, step * 100, 12_000)]
    assert sum("loss" in line for line in lines) == 3, "the head, now and then"
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) <= width
    assert ("targets/s" in lines[0]) == (width == 120)
    assert log.lines({"eval_loss": 0.5}, 4500, 12_000) == [" 4500/12000  held-out loss 0.5000"]


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_of_plan_or_check_is_wider_than_the_terminal(
    width: int, small_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    from rich.console import Console

    from triptych import terminal
    from triptych.commands.check import check
    from triptych.commands.plan import PlanOptions, plan

    shown = io.StringIO()
    monkeypatch.setattr(terminal, "Console", lambda **_: Console(file=shown, width=width, emoji=False, highlight=False))
    monkeypatch.chdir(tmp_path)
    run = tiny.write_run(tmp_path, small_model_dir, tiny.write_dataset(tmp_path, 8), train={"rows_per_step": 2})
    plan(run, (), PlanOptions(world_size=2, gpu="12GB"))
    assert check([str(run)], as_json=False) == 0
    lines = shown.getvalue().splitlines()
    assert any(line.startswith("memory:") for line in lines)
    assert max(map(len, lines)) <= width
