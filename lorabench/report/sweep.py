"""The joint report at the end of a sweep: one table of all its runs, without a second command.

Switched on as a callback of Hydra's (`hydra.callbacks` in conf/config.yaml). A sweep's jobs may run in other processes
and on other machines, and its folders may hold runs of earlier sweeps; so every job notes its run folder in a register,
a hidden folder below the sweep's that lasts as long as the sweep.
"""

from __future__ import annotations

import atexit
import json
import shutil
import sys
import tempfile
from itertools import groupby
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from lorabench.errors import UserError
from lorabench.report import write_joint_report

OWN_TASKS = ("merge", "generate")  # have no run folder, `output` is what they make


class JointReport(Callback):
    """Collects the run folders of a sweep; travels to the jobs with what `on_multirun_start` found."""

    register: Path | None = None  # none in a single run

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(OmegaConf.select(config, "hydra.sweep.dir")).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        self.register = Path(tempfile.mkdtemp(prefix=".sweep-", dir=folder))
        atexit.register(shutil.rmtree, self.register, ignore_errors=True)  # however the sweep ends

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """In the job's process."""
        if self.register is not None:
            code = job_return.return_value if job_return.status == JobStatus.COMPLETED else 1
            made = "output" if OmegaConf.select(config, "task.name") in OWN_TASKS else "hydra.runtime.output_dir"
            note = {"folder": str(Path(OmegaConf.select(config, made)).resolve()), "code": code or 0}
            (self.register / f"{config.hydra.job.num:06d}.json").write_text(json.dumps(note))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if self.register is None:
            return
        notes = [json.loads(file.read_text()) for file in sorted(self.register.glob("*.json"))]
        report([Path(note["folder"]) for note in notes if note["code"] == 0])
        if failed := [note["code"] for note in notes if note["code"] != 0]:
            print(f"error: {len(failed)} of {len(notes)} runs failed; see above", file=sys.stderr)
            sys.exit(max(failed))


def report(folders: list[Path]) -> None:
    """Write and print one joint report into each folder that several of these run folders lie in."""
    for folder in dict.fromkeys(folders):
        if (count := folders.count(folder)) > 1:
            print(
                f"note: {count} runs went to {folder} and only the last is left; give each its own name= or output=",
                file=sys.stderr,
            )
    runs = [folder for folder in dict.fromkeys(folders) if (folder / "scores.parquet").is_file()]
    for parent, below in groupby(sorted(runs, key=lambda run: run.parent), lambda run: run.parent):
        if len(together := list(below)) > 1:
            try:
                write_joint_report(together, parent)
            except UserError as error:
                print(f"no joint report in {parent}: {error}", file=sys.stderr)
            else:
                print((parent / "table.md").read_text(encoding="utf-8"))
                print(parent / "report.html")
