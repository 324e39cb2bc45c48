"""The run folder: copies of a run's files from the store and its report, so that it can be moved and read by itself.

A run has one method with the baseline and oracle rows, or several methods (task=compare), whose merges, losses and
costs are then kept by row. The manifest is written last; its key and its list of files mark a finished run.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from lorabench.config.schemas import LoggerSpec
from lorabench.engine.artifact import Artifact
from lorabench.engine.failures import FORBIDDEN
from lorabench.engine.output_folder import MANIFEST, OutputFolder
from lorabench.engine.record import key_of, sha256
from lorabench.report import FILES as REPORT_FILES
from lorabench.report.imported import CHECKSUMS
from lorabench.tasks.plan import Plan
from lorabench.tasks.run_files import write_files
from lorabench.tasks.run_manifest import curves_of, manifest_of


@dataclass(frozen=True)
class RunWriter:
    """Writer of a run folder.

    Args:
        path: The folder.
        plan: The plan of the run.
        config: The resolved configuration as YAML.
    """

    path: Path
    plan: Plan
    config: str

    @property
    def output(self) -> OutputFolder:
        """Return the folder with the list of our files in it."""
        return OutputFolder(self.path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold a lock, so that no other process with the same command writes the folder.

        The lock is in the store, whose file system is known to have locks. A read-only store has none.
        """
        with ExitStack() as held:
            try:
                held.enter_context(self.plan.store.lock(key_of("folder", {"path": str(self.path.resolve())})))
            except OSError as error:
                if error.errno not in FORBIDDEN:
                    raise
            yield

    def is_done(self, logger: LoggerSpec) -> bool:
        """Return whether the folder has this run, complete and shown by this logger."""
        try:
            manifest = json.loads((self.path / MANIFEST).read_text())
            same = manifest["key"] == self.plan.key() and manifest["logger"] == [logger.kind, logger.mode]
            same = same and manifest["protocol"] == self.protocol
            same = same and manifest.get("reference", "direct") == self.reference
            files: dict[str, int] = manifest["files"]
            return same and all((self.path / file).stat().st_size == size for file, size in files.items())
        except (OSError, ValueError, KeyError):
            return False

    def assemble(self, seconds: float) -> None:
        """Replace the files of an earlier run. The run counts as done only after `seal`.

        Args:
            seconds: Time that this run took to compute missing artifacts.
        """
        with self.output.filled() as draft:
            replace(self, path=draft).write(seconds)

    def write(self, seconds: float) -> None:
        """Write all files into an empty folder; see `assemble`."""
        from lorabench.report import write_report

        (self.path / "config.yaml").write_text(self.config, encoding="utf-8")
        write_files(self.plan, self.path)
        self.output.write_manifest(manifest_of(self.plan, seconds), {})
        write_report(self.path)

    def seal(self, logger: LoggerSpec) -> None:
        """Mark the run as done: write its key, its files with checksums, and its logger into the manifest."""
        files = {file: (self.path / file).stat().st_size for file in self.output.files()}
        how = {"key": self.plan.key(), "logger": [logger.kind, logger.mode], "protocol": self.protocol}
        how["reference"] = self.reference
        how[CHECKSUMS] = {file: sha256(self.path / file) for file in sorted(files) if file not in REPORT_FILES}
        self.output.write_manifest(self.output.manifest() | how, files)

    @property
    def protocol(self) -> dict[str, Any]:
        """Return the protocol of the table. Another protocol needs another report of the same run."""
        return yaml.safe_load(self.config).get("protocol") or {}

    @property
    def reference(self) -> str:
        """Return the row with which the table compares the others."""
        return yaml.safe_load(self.config).get("reference", "direct")

    def curves(self, artifact: Artifact) -> dict[str, list[float]]:
        """Return each loss term's value per step; empty for an artifact that was not trained."""
        return curves_of(self.plan, artifact)

    def table(self) -> str:
        """Return the table as Markdown."""
        return (self.path / "table.md").read_text(encoding="utf-8")
