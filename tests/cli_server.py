"""Commands of Triptych in processes of their own, forked from one that has torch imported: a run takes seconds."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Command:
    """One command line of Triptych that runs or ran."""

    server: Server
    pid: int
    folder: Path
    """Of its output"""

    @property
    def out(self) -> str:
        return (self.folder / "out").read_text(encoding="utf-8", errors="replace")

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text(encoding="utf-8", errors="replace")

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def until(self, text: str, timeout: float = 120) -> None:
        """Wait until it said so on standard error."""
        end = time.monotonic() + timeout
        while text not in self.err:
            assert time.monotonic() < end, f"never said {text!r}:\n{self.err}"
            assert self.pid not in self.server.ended, f"ended before it said {text!r}:\n{self.err}"
            self.server.look(0.01)

    def wait(self, timeout: float = 120) -> int:
        """The exit status; negative for a signal that ended it."""
        end = time.monotonic() + timeout
        while self.pid not in self.server.ended:
            assert time.monotonic() < end, f"still running:\n{self.err}"
            self.server.look(0.05)
        return self.server.ended[self.pid]


class Server:
    """The process that forks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ended: dict[int, int] = {}
        self._count = 0
        self._rest = b""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
        self._process = subprocess.Popen(
            [sys.executable, "-c", "import cli_server; cli_server.serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )

    def start(self, *arguments: str, before: str = "", env: Mapping[str, str] | None = None) -> Command:
        """Start ``triptych ARGUMENTS``; ``before``: Python that the process runs first, to provoke something."""
        self._count += 1
        folder = self.folder / f"command-{self._count}"
        folder.mkdir()
        for name in ("out", "err"):
            (folder / name).touch()
        asked = {"arguments": arguments, "folder": str(folder), "before": before, "env": {**os.environ, **(env or {})}}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        self._process.stdin.flush()
        self._started: int | None = None
        while self._started is None:
            self.look(1)
        return Command(self, self._started, folder)

    def run(self, *arguments: str, before: str = "", env: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Exit status and standard error of ``triptych ARGUMENTS``."""
        command = self.start(*arguments, before=before, env=env)
        code = command.wait()
        return code, command.err

    def look(self, timeout: float) -> None:
        """Take news of processes that started or ended."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            return
        found = os.read(self._process.stdout.fileno(), 65536)
        assert found, "the server died"
        *lines, self._rest = (self._rest + found).split(b"\n")
        for line in lines:
            what, pid, status = line.split()
            if what == b"started":
                self._started = int(pid)
            else:
                self.ended[int(pid)] = int(status)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    try:
        yield server
    finally:
        server.close()


def serve() -> None:
    """Fork a process for each line of standard input; say on standard output when one ends."""
    import torch

    import triptych.cli
    import triptych.training.train  # noqa: F401

    torch.set_num_threads(1)
    running: set[int] = set()
    rest = b""
    while True:
        if select.select([0], [], [], 0.02)[0]:
            found = os.read(0, 65536)
            if not found:
                return
            *lines, rest = (rest + found).split(b"\n")
            for line in lines:
                running.add(_fork(json.loads(line)))
        for pid in list(running):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                running.remove(pid)
                os.write(1, f"ended {pid} {os.waitstatus_to_exitcode(status)}\n".encode())


def _fork(asked: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        os.write(1, f"started {pid} 0\n".encode())
        return pid
    code = 1
    try:
        os.setsid()
        for number, name in ((1, "out"), (2, "err")):
            file = os.open(f"{asked['folder']}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.clear()
        os.environ.update(asked["env"])
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever nohup, a job in the background or CI made of them
        sys.argv = ["triptych", *asked["arguments"]]
        exec(asked["before"], {})
        import triptych.cli

        triptych.cli.main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
