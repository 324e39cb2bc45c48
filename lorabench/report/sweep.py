"""End of a sweep: one table of all its runs, and one line per failed run.

This is a Hydra callback (`hydra.callbacks` in conf/config.yaml). Jobs of a sweep may run in other processes and on
other machines, and its folder may contain runs of earlier sweeps. Therefore each job writes a note into a register, a
hidden folder that exists during the sweep, and holds a lock there while it runs. A killed job leaves a note without an
exit code and a free lock.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock, Timeout
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from lorabench.base import UserError
from lorabench.engine.failures import Failed, system_fault
from lorabench.engine.output_folder import OutputFolder
from lorabench.report import FILES, write_joint_report

OWN_TASKS = (
    "merge",
    "generate",
    "inspect",
    "tune",
    "unzip",
    "import_results",
)  # tasks without a run folder; they write to `output`
MULTIRUN = "multirun.yaml"  # which Hydra writes
DIED = "its process was killed or ended without an error message"


@dataclass
class Note:
    """Note of a job; its exit code is None while it runs, and also after it was killed."""

    folder: str
    overrides: list[str]
    log: str | None  # output file of its process, if submitit started it
    code: int | None = None
    line: str = DIED

    def write(self, file: Path) -> None:
        """Write the note to a new file and rename it."""
        draft = file.with_suffix(".draft")
        draft.write_text(json.dumps(asdict(self)))
        draft.replace(file)


class JointReport(Callback):
    """Collect the results of a sweep's jobs. The instance is pickled to the jobs after `on_multirun_start`."""

    register: Path | None = None  # None in a single run
    current: ClassVar[JointReport | None] = None  # instance of the sweep that this process started
    running: ClassVar[FileLock | None] = None  # lock of this process's job; not in the instance, which is pickled
    note: Note

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(OmegaConf.select(config, "hydra.sweep.dir")).resolve()
        if OmegaConf.select(config, "task.name") not in OWN_TASKS:  # whose folder is the store
            output = OutputFolder(folder, "hydra.sweep.dir=<an empty folder>")
            try:
                output.check_free([*FILES, MULTIRUN])
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                sys.exit(2)  # Hydra turns exceptions of callbacks into warnings
            output.add(MULTIRUN)
        folder.mkdir(parents=True, exist_ok=True)
        self.register = Path(tempfile.mkdtemp(prefix=".sweep-", dir=folder))
        atexit.register(shutil.rmtree, self.register, ignore_errors=True)  # also after a failure
        JointReport.current = self

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the job's note (in its process); exit if another job of the sweep has the same folder."""
        if self.register is not None:
            made = "output" if OmegaConf.select(config, "task.name") in OWN_TASKS else "hydra.runtime.output_dir"
            folder = Path(OmegaConf.select(config, made)).resolve()
            self.note = Note(str(folder), list(config.hydra.overrides.task), scheduler_log())
            file = self.register / f"{config.hydra.job.num:06d}.json"
            JointReport.running = FileLock(file.with_suffix(".lock"))
            JointReport.running.acquire()
            self.note.write(file)
            others = [Note(**json.loads(other.read_text())) for other in self.files() if other != file]
            if any(other.folder == self.note.folder for other in others):
                self.note.code, self.note.line = 2, shared_folder(folder, made == "output")
                self.note.write(file)
                print(f"error: {self.note.line}", file=sys.stderr)
                sys.exit(2)  # Hydra turns exceptions of callbacks into warnings

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Complete the job's note (in its process)."""
        if self.register is not None:
            returned = job_return._return_value
            if (
                job_return.status != JobStatus.COMPLETED
            ):  # an exception, which `lorabench.tasks.cli.task` does not raise
                self.note.code, self.note.line = 1, f"{type(returned).__name__}: {returned}"
            elif isinstance(returned, Failed):
                self.note.code, self.note.line = returned.code, returned.line
                self.note.log = returned.log or self.note.log
            else:
                self.note.code = 0
            self.note.write(self.register / f"{config.hydra.job.num:06d}.json")
            if JointReport.running is not None:
                JointReport.running.release()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if self.register is not None and (code := self.finish()):
            sys.exit(code)

    def broken(self, reason: str) -> int:
        """End a sweep whose launcher failed, as it does if the process of a job is killed; return the exit code.

        Jobs that still run are waited for. Jobs that the launcher never started are unknown here.
        """
        while any(self.is_running(file) for file in self.files()):
            time.sleep(1)
        if not self.files():
            print(f"error: the launcher failed: {reason}", file=sys.stderr)
            return 1
        code = self.finish()
        print(
            f"error: the launcher ended: {reason.splitlines()[0]}\n"
            "runs that are not listed were not started or wait in a queue; run the same command again to resume",
            file=sys.stderr,
        )
        return code or 1

    def files(self) -> list[Path]:
        """Return the note files in the order of the jobs."""
        return sorted(self.register.glob("*.json")) if self.register is not None else []

    def is_running(self, file: Path) -> bool:
        """Return whether the job of a note has no exit code and its process holds the lock."""
        if json.loads(file.read_text())["code"] is not None:
            return False
        try:
            with FileLock(file.with_suffix(".lock")).acquire(blocking=False):
                return False
        except Timeout:
            return True

    def finish(self) -> int:
        """List the failed runs, report the finished ones, and return the largest exit code."""
        notes = [Note(**json.loads(file.read_text())) for file in self.files()]
        failed = [note for note in notes if note.code != 0]
        if failed:
            print(f"error: {len(failed)} of {len(notes)} runs failed:", file=sys.stderr)
            shared = set.intersection(*(set(note.overrides) for note in notes)) if len(notes) > 1 else set()
            for note in failed:
                name = " ".join(each for each in note.overrides if each not in shared) or note.folder
                print(f"  {name}: {note.line}{f' ({note.log})' if note.log else ''}", file=sys.stderr)
        finished = [Path(note.folder) for note in notes if note.code == 0]
        reported = report(finished, [Path(note.folder) for note in failed])
        return max([int(not reported), *(1 if note.code is None else note.code for note in failed)])


def shared_folder(folder: Path, is_output: bool) -> str:
    """Return the message on a folder that two jobs would write; `is_output`: it is set by `output`."""
    job = "${hydra:job.num}"
    apart = (
        f"'output={folder.stem}-{job}{folder.suffix}'" if is_output else f"'hydra.sweep.subdir=${{task.folder}}-{job}'"
    )
    return f"another run of this sweep also writes to {folder}; use {apart} to give each run its own folder"


def scheduler_log() -> str | None:
    """Return the file with the output of this process if submitit started it, else None."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return None
    from submitit import JobEnvironment

    return str(JobEnvironment().paths.stderr)


def report(folders: list[Path], failed: Sequence[Path] = ()) -> bool:
    """Write and print one joint report for each folder that contains several of these run folders.

    Runs that are not comparable get no report.

    Args:
        folders: Finished runs.
        failed: Runs to be named as missing.

    Returns:
        False if a report could not be written; an exception would become a warning of Hydra.
    """
    for folder in dict.fromkeys(folders):
        if (count := folders.count(folder)) > 1:
            print(
                f"note: {count} runs wrote to {folder}, only the last is left; use another name= or output= for each",
                file=sys.stderr,
            )
    complete = True
    runs = [folder for folder in dict.fromkeys(folders) if (folder / "scores.parquet").is_file()]
    for parent, below in groupby(sorted(runs, key=lambda run: run.parent), lambda run: run.parent):
        if len(together := list(below)) > 1:
            try:
                write_joint_report(together, parent, unfinished=[path for path in failed if path.parent == parent])
                print((parent / "table.md").read_text(encoding="utf-8"))
                print(parent / "report.html")
            except UserError as error:
                print(f"no joint report in {parent}: {error}", file=sys.stderr)
            except Exception as error:
                complete = False
                reason = system_fault(error, str(parent)) or f"{type(error).__name__}: {error}".splitlines()[0]
                again = f"the runs are kept; run python -m lorabench.report {parent}"
                print(f"error: no joint report in {parent}: {reason}; {again}", file=sys.stderr)
    return complete
