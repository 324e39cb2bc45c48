"""The end of a sweep: one table of all its runs and one line for each that failed, without a second command.

Switched on as a callback of Hydra's (`hydra.callbacks` in conf/config.yaml). A sweep's jobs may run in other processes
and on other machines, and its folders may hold runs of earlier sweeps; so every job notes what it is in a register, a
hidden folder below the sweep's that lasts as long as the sweep, and holds a lock there as long as it runs. A job that
is killed leaves a note without an end and a free lock.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import sys
import tempfile
import time
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

OWN_TASKS = ("merge", "generate", "inspect")  # have no run folder, `output` is what they make
MULTIRUN = "multirun.yaml"  # which Hydra writes
DIED = "its process was killed or died without a word"


@dataclass
class Note:
    """What a job tells of itself; code: None as long as it runs, and for ever if it dies."""

    folder: str
    overrides: list[str]
    log: str | None  # of whoever started its process
    code: int | None = None
    line: str = DIED

    def write(self, file: Path) -> None:
        draft = file.with_suffix(".draft")
        draft.write_text(json.dumps(asdict(self)))
        draft.replace(file)


class JointReport(Callback):
    """Collects what became of a sweep's jobs; travels to them with what `on_multirun_start` found."""

    register: Path | None = None  # none in a single run
    current: ClassVar[JointReport | None] = None  # of the sweep that this process started
    running: ClassVar[FileLock | None] = None  # of this process's job; not of the instance, which must travel
    note: Note

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(OmegaConf.select(config, "hydra.sweep.dir")).resolve()
        if OmegaConf.select(config, "task.name") not in OWN_TASKS:  # whose folder is the store
            output = OutputFolder(folder, "hydra.sweep.dir=<an empty folder>")
            try:
                output.check_free([*FILES, MULTIRUN])
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                sys.exit(2)  # an exception would only be a warning of Hydra's
            output.add(MULTIRUN)
        folder.mkdir(parents=True, exist_ok=True)
        self.register = Path(tempfile.mkdtemp(prefix=".sweep-", dir=folder))
        atexit.register(shutil.rmtree, self.register, ignore_errors=True)  # however the sweep ends
        JointReport.current = self

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """In the job's process, which ends where another job of the sweep has the same folder."""
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
                sys.exit(2)  # an exception would only be a warning of Hydra's

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """In the job's process."""
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
        """The end of a sweep whose launcher gave up, which it does when the process of a job dies: the exit code.

        Jobs that run elsewhere are waited for; those that the launcher never started cannot be known here.
        """
        while any(self.is_running(file) for file in self.files()):
            time.sleep(1)
        if not self.files():
            print(f"error: the launcher failed: {reason}", file=sys.stderr)
            return 1
        code = self.finish()
        print(
            f"error: the launcher ended: {reason.splitlines()[0]}\n"
            "runs that are named nowhere were not started, or wait in a queue; use the same command to go on",
            file=sys.stderr,
        )
        return code or 1

    def files(self) -> list[Path]:
        """The notes, in the order of the jobs."""
        return sorted(self.register.glob("*.json")) if self.register is not None else []

    def is_running(self, file: Path) -> bool:
        if json.loads(file.read_text())["code"] is not None:
            return False
        try:
            with FileLock(file.with_suffix(".lock")).acquire(blocking=False):
                return False
        except Timeout:
            return True

    def finish(self) -> int:
        """Name the failed runs, report the finished ones; the greatest of the exit codes."""
        notes = [Note(**json.loads(file.read_text())) for file in self.files()]
        failed = [note for note in notes if note.code != 0]
        if failed:
            print(f"error: {len(failed)} of {len(notes)} runs failed:", file=sys.stderr)
            shared = set.intersection(*(set(note.overrides) for note in notes)) if len(notes) > 1 else set()
            for note in failed:
                name = " ".join(each for each in note.overrides if each not in shared) or note.folder
                print(f"  {name}: {note.line}{f' ({note.log})' if note.log else ''}", file=sys.stderr)
        told = report([Path(note.folder) for note in notes if note.code == 0])
        return max([int(not told), *(1 if note.code is None else note.code for note in failed)])


def shared_folder(folder: Path, is_output: bool) -> str:
    """The line on a folder that two jobs would write; is_output: `output` names it."""
    job = "${hydra:job.num}"
    apart = (
        f"'output={folder.stem}-{job}{folder.suffix}'" if is_output else f"'hydra.sweep.subdir=${{task.folder}}-{job}'"
    )
    return f"another run of this sweep goes to {folder} too; give each its own, such as {apart}"


def scheduler_log() -> str | None:
    """The file that takes what this process prints, where submitit started it."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return None
    from submitit import JobEnvironment

    return str(JobEnvironment().paths.stderr)


def report(folders: list[Path]) -> bool:
    """Write and print one joint report into each folder that several of these run folders lie in.

    False where one could not be written: Hydra would make a warning of an exception. Runs that nobody can compare need
    none.
    """
    for folder in dict.fromkeys(folders):
        if (count := folders.count(folder)) > 1:
            print(
                f"note: {count} runs went to {folder} and only the last is left; give each its own name= or output=",
                file=sys.stderr,
            )
    told = True
    runs = [folder for folder in dict.fromkeys(folders) if (folder / "scores.parquet").is_file()]
    for parent, below in groupby(sorted(runs, key=lambda run: run.parent), lambda run: run.parent):
        if len(together := list(below)) > 1:
            try:
                write_joint_report(together, parent)
                print((parent / "table.md").read_text(encoding="utf-8"))
                print(parent / "report.html")
            except UserError as error:
                print(f"no joint report in {parent}: {error}", file=sys.stderr)
            except Exception as error:
                told = False
                reason = system_fault(error, str(parent)) or f"{type(error).__name__}: {error}".splitlines()[0]
                again = f"the runs are kept, type python -m lorabench.report {parent}"
                print(f"error: no joint report in {parent}: {reason}; {again}", file=sys.stderr)
    return told
