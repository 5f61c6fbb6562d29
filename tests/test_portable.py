"""Checking, indexing, planning and encoding need nothing that only Linux has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import tiny

ELSEWHERE = """
import os, socket, sys
for module, names in {
    os: ("sched_getaffinity", "memfd_create"),
    socket: ("SOCK_SEQPACKET", "send_fds", "recv_fds"),
}.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
"""
"""Takes away what macOS or Windows do not have; filelock and Python's own modules are imported before."""

PROGRAM = f"""
import filelock, multiprocessing.util, shutil, subprocess, tempfile, pathlib, uuid
{ELSEWHERE}
from triptych.cli import main
sys.argv = ["triptych", *sys.argv[1:]]
main()
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_what_needs_no_training_runs_without_linux(small_model_dir: Path, tmp_path: Path) -> None:
    data = tiny.write_dataset(tmp_path, 5)
    path = tiny.write_run(tmp_path, small_model_dir, data)
    for command in (
        ["check", str(data)],
        ["check", str(path)],
        ["index", str(path)],
        ["plan", str(path)],
        ["encode", str(data), "--model", str(small_model_dir)],
    ):
        done = run(*command)
        assert done.returncode == 0, (command, done.stderr)
    assert len([json.loads(line) for line in done.stdout.splitlines()]) == 5


def test_processes_that_decode_say_that_they_need_linux(small_model_dir: Path, tmp_path: Path) -> None:
    data = tiny.write_dataset(tmp_path, 5)
    path = tiny.write_run(tmp_path, small_model_dir, data, data={"workers": 1})
    done = run("train", str(path))
    assert done.returncode == 1
    assert "set data.workers: 0" in done.stderr
    assert "Traceback" not in done.stderr
