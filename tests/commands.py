"""Fast commands of run.py, forked from a process that has already imported everything.

`python -m commands` reads lines of JSON and answers each with a number:

    {"arguments", "cwd", "out", "err"}   start a command with files for its output; answer: process id
    {"end": pid}                         wait for a command; answer: exit code
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

TESTS = Path(__file__).parent
ROOT = TESTS.parent
LIMIT = 300  # longest duration of a command in seconds


class Commands:
    """The process that commands are forked from, as a context manager."""

    def __enter__(self) -> Commands:
        environment = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}
        environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, TESTS)))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "commands"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment, start_new_session=True,
        )  # fmt: skip
        self.files, self.number = TemporaryDirectory(prefix="commands-"), count()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.files.cleanup()

    def start(self, *arguments: str, cwd: Path = ROOT) -> Command:
        """Start `python run.py <arguments>` in its own process group; the caller must call `end`."""
        number = next(self.number)
        out, err = (Path(self.files.name) / f"{number}.{end}" for end in ("out", "err"))
        pid = self.ask({"arguments": arguments, "cwd": str(cwd), "out": str(out), "err": str(err)})
        return Command(self.ask, list(arguments), pid, out, err)

    def run(self, *arguments: str, cwd: Path = ROOT) -> CompletedProcess[str]:
        """Run a command to its end and return its exit code and output."""
        return self.start(*arguments, cwd=cwd).end()

    def ask(self, line: dict[str, Any]) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@dataclass
class Command:
    """A started command; its process leads a process group."""

    ask: Callable[[dict[str, Any]], int]
    arguments: list[str]
    pid: int
    out: Path
    err: Path
    deadline: float = field(default_factory=lambda: time.monotonic() + LIMIT)

    def is_running(self) -> bool:
        """Return True while the command runs; kill it if it exceeds the time limit."""
        if time.monotonic() > self.deadline:
            self.kill()
        with suppress(FileNotFoundError):
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        return False

    def kill(self) -> None:
        """Kill the command and its process group, which exists as soon as `start` returns."""
        os.killpg(self.pid, signal.SIGKILL)

    def end(self) -> CompletedProcess[str]:
        """Wait for the command and return its exit code and output."""
        while self.is_running():
            time.sleep(0.02)
        code = self.ask({"end": self.pid})
        return CompletedProcess(self.arguments, code, self.out.read_text(), self.err.read_text())

    def wait_for(self, ready: Callable[[], object]) -> None:
        """Wait until `ready()` is true; fail if the command ends earlier."""
        while not ready():
            assert self.is_running(), self.end()
            time.sleep(0.01)


def serve() -> None:
    from benchmarks.kills import fork, preload

    preload()
    for text in sys.stdin:
        line = json.loads(text)
        if "end" in line:
            print(os.waitstatus_to_exitcode(os.waitpid(line["end"], 0)[1]), flush=True)
        elif pid := fork():
            with suppress(OSError):  # the child has already set it
                os.setpgid(pid, pid)
            print(pid, flush=True)
        else:
            become(**line)
    os._exit(0)  # skip Python's slow cleanup, as in `become`


def become(arguments: list[str], cwd: str, out: str, err: str) -> None:
    """Run the command in the forked process and exit.

    Exit handlers run as in any program, but memory is not freed: Python's cleanup takes seconds after so many imports.
    """
    from lorabench.tasks.cli import main

    os.setpgid(0, 0)
    os.chdir(cwd)
    for number, file in ((0, os.devnull), (1, out), (2, err)):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = [str(ROOT / "run.py"), *arguments]
    code = 1
    try:
        code = main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
