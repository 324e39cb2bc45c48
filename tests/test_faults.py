"""Every fault of a run is one line, and the same command resumes to the same scores."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from commands import Command, Commands

from benchmarks.kills import SMALL, scores

ROOT = Path(__file__).parents[1]
SMALLER = [
    "lora.rank=2", "lora.steps=3", "lora.batch=2", "generate.images=2", "generate.steps=2", "method.fit.steps=2",
    "dataset.styles=[ink_1]",
]  # fmt: skip


@pytest.fixture(scope="module")
def command_line(folder: Path, scorers: Path) -> list[str]:
    return [*SMALL, f"model.path={folder}", f"scorers.path={scorers}", *SMALLER]


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(commands: Commands, command_line: list[str]) -> Run:
    """Runs the command with a store; returns its code and its last line of errors.  meanwhile: called as it runs."""

    def run(
        output: Path, *overrides: str, meanwhile: Callable[[Command], None] = lambda command: None
    ) -> tuple[int, str]:
        command = commands.start(*command_line, "trainer.workers=0", f"output={output}", *overrides)
        meanwhile(command)
        done = command.end()
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stderr.strip().splitlines()[-1]

    return run


@pytest.fixture(scope="module")
def expected(commands: Commands, command_line: list[str], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The scores of an undisturbed run."""
    output = tmp_path_factory.mktemp("undisturbed")
    done = commands.run(*command_line, "trainer.workers=0", f"output={output}")
    assert done.returncode == 0, done.stderr
    return scores(output)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A file system of its own: called with mount options, mounts it or changes them."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        again = "remount," if os.path.ismount(place) else ""
        command = ["mount", "-t", "tmpfs", "-o", f"{again}{options}", "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
        return place

    yield mount
    if os.path.ismount(place):
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
def test_killed_run_resumes_with_equal_scores(command_line: list[str], tmp_path: Path) -> None:
    """Kill -9 of a run's process group in each stage, then the same command, and again; see benchmarks/kills.py."""
    command = [sys.executable, "-m", "benchmarks.kills", "--chain", "--kills", "20"]
    command += ["--json", str(tmp_path / "kills.json")]
    done = subprocess.run([*command, *command_line], cwd=ROOT, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stdout + done.stderr
    kills = json.loads((tmp_path / "kills.json").read_text())["kills"]
    assert len(kills) == 20 and all(kill["equal"] for kill in kills)
    assert {kill["stage"] for kill in kills} == {"personalize", "merge", "generate", "score"}


def test_full_disk_and_then_read_only_one(run: Run, disk: Callable[[str], Path], expected: bytes) -> None:
    place = disk("size=100k")
    code, line = run(place)
    full = f"error: no space is left to write {place}/"
    assert code == 2 and line.startswith(full) and "the same command" in line
    disk("size=900k")
    code, line = run(place)
    assert code == 2 and line.startswith(full)
    assert list(place.glob("store/*/*/key.json")) and not list(place.glob("store/.drafts/*"))
    disk("size=900k,ro")
    code, line = run(place)
    assert code == 2 and line.startswith("error: cannot write to") and "Read-only file system; use output=" in line
    disk("size=100m,rw")
    assert run(place)[0] == 0
    assert scores(place) == expected


@pytest.mark.slow
def test_full_disk_under_worker_process(run: Run, disk: Callable[[str], Path]) -> None:
    place = disk("size=100k")
    code, line = run(place, "trainer.workers=1")
    assert code == 2 and line.startswith(f"error: no space is left to write {place}/")


@pytest.mark.slow
def test_store_that_is_deleted_under_run(run: Run, tmp_path: Path, expected: bytes) -> None:
    def delete(command: Command) -> None:
        command.wait_for(lambda: list(tmp_path.glob("out/store/merge/*/key.json")))
        while (tmp_path / "out" / "store").exists():  # the run may be writing into it
            shutil.rmtree(tmp_path / "out" / "store", ignore_errors=True)

    code, line = run(tmp_path / "out", meanwhile=delete)
    assert code == 2 and line.startswith("error: stored files in") and line.endswith("to recompute them")
    assert run(tmp_path / "out")[0] == 0
    assert scores(tmp_path / "out") == expected


@pytest.mark.slow
def test_worker_killed_for_memory(run: Run, tmp_path: Path, expected: bytes) -> None:
    def kill_worker(command: Command) -> None:
        command.wait_for(lambda: list(tmp_path.glob("out/store/personalize/*/key.json")))
        worker = next(p for p in psutil.Process(command.pid).children() if "spawn_main" in " ".join(p.cmdline()))
        worker.send_signal(signal.SIGKILL)  # as the kernel does

    code, line = run(tmp_path / "out", "trainer.workers=1", meanwhile=kill_worker)
    assert code == 2 and "most likely for want of memory; run the same command" in line
    assert run(tmp_path / "out")[0] == 0
    assert scores(tmp_path / "out") == expected
