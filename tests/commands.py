"""Commands of run.py in moments: forked from one process that has imported everything.

python -m commands      reads a JSON list of overrides and a log file a line, answers with the command's pid and,
                        when it has ended, its exit code
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType

TESTS = Path(__file__).parent


class Commands:
    """A context manager: the process they are forked from."""

    def __enter__(self) -> Commands:
        path = os.pathsep.join(map(str, (TESTS.parent, TESTS)))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "commands"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": path}, start_new_session=True,
        )  # fmt: skip
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)

    def start(self, overrides: list[str], log: Path) -> int:
        """The pid of a command; what it prints goes to the end of the log.  `end` must follow."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([overrides, str(log)]) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def end(self) -> int:
        """The exit code of the command that was started."""
        return self.answer()


def serve() -> None:
    from benchmarks.kills import forked, preload, start

    preload()
    for line in sys.stdin:
        overrides, log = json.loads(line)
        pid = start(forked, overrides, Path(log))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
