"""The command line as a user meets it: quick, and without tracebacks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import tiny

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
