"""task=import_results: add runs made elsewhere to a table.

    python run.py task=import_results folder=theirs/duolora-none-s0 name=all_methods
    python run.py task=import_results folder=theirs/sdxl name=sdxl task.origin="lab cluster"

A run folder is copied into `output/name` if it is complete, has the checksums that its manifest lists, was made by this
version of lorabench, and can share a table with the runs that are there; then the joint report is written again. The
labels of its rows name its origin. Nothing in an imported folder is executed.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from omegaconf import DictConfig

from lorabench.base import UserError, __version__
from lorabench.engine.output_folder import OutputFolder
from lorabench.engine.record import sha256
from lorabench.report import write_joint_report
from lorabench.report.folder import SCORES, RunFolder, common_protocol, run_folders
from lorabench.report.imported import CHECKSUMS, IMPORTED
from lorabench.report.pooling import load_runs
from lorabench.report.table import Table

CONFIG = "config.yaml"


def run(cfg: DictConfig, _: Path) -> None:
    """Copy the runs into the folder of the table and write its report.

    Raises:
        UserError: If a run is damaged, was not made by this version, or cannot share the table.
    """
    if not cfg.folder:
        raise UserError(
            "task=import_results needs a run folder; use folder=<a folder that run.py printed> name=<table>"
        )
    table = Path(cfg.output) / cfg.name
    manifests = {path: checked(path) for path in found_runs(Path(cfg.folder))}
    present = {OutputFolder(path).manifest().get("key"): path for path in runs_of(table)}
    for path, manifest in manifests.items():
        if manifest["key"] in present:
            print(f"{path} is already in {present[manifest['key']]}")
        else:
            print(f"{path} -> {add(path, manifest, table, cfg.task.origin)}")
    write_joint_report(runs_of(table), table)
    print((table / "table.md").read_text(encoding="utf-8"))
    print(table / "report.html")


def found_runs(folder: Path) -> list[Path]:
    """Return the run folders in a folder, or the folder itself.

    Raises:
        UserError: If there is none.
    """
    if not folder.is_dir():
        raise UserError(f"folder={folder} is not a folder; use folder=<a folder that run.py printed>")
    return run_folders([folder])


def runs_of(table: Path) -> list[Path]:
    """Return the finished runs of a table."""
    return [path for path in run_folders([table]) if (path / SCORES).is_file()] if table.is_dir() else []


def checked(path: Path) -> dict[str, Any]:
    """Return the manifest of a finished run whose files are as they were made.

    Raises:
        UserError: If it is another folder, unfinished, damaged, or was made by another version.
    """
    runs = RunFolder.load_all(path)  # raises UserError if it is not a run
    again = "run its command again with this version and copy the whole folder"
    manifest = OutputFolder(path).manifest()
    if not isinstance(manifest.get("key"), str):
        raise UserError(f"{path} is not a finished run of lorabench; use a folder whose command has ended")
    if (version := manifest["versions"]["lorabench"]) != __version__:
        raise UserError(f"{path} was made by lorabench {version} and this is {__version__}; {again}")
    sums = manifest.get(CHECKSUMS)
    if not isinstance(sums, dict) or not {SCORES, CONFIG} <= sums.keys():
        raise UserError(f"{path} was made by an older lorabench, without checksums; {again}")
    check_files(path, sums)
    for one in runs:
        names = {one.manifest["method"], one.manifest["ablation"], *one.scores[["content", "style"]].to_numpy().ravel()}
        if wrong := sorted(str(name) for name in names if not is_name(str(name))):
            raise UserError(f"{path} has the name {wrong[0]!r}, which is not one of a file; {again}")
        if lost := [p.path for p in one.pictures if p.path.relative_to(path).as_posix() not in sums]:
            raise UserError(f"{lost[0]} has no checksum; {again}")
    return manifest


def check_files(path: Path, sums: Mapping[str, str]) -> None:
    """Check the files of a run.

    Raises:
        UserError: If a file is missing, differs from its checksum, or is outside the folder.
    """
    for file, digest in sums.items():
        here = path / file
        if not is_inside(file) or not here.resolve().is_relative_to(path.resolve()):
            raise UserError(f"{path} lists a file outside of it ({file}) and is left out; use a folder of lorabench")
        if not here.is_file() or sha256(here) != digest:
            raise UserError(f"{here} is {'damaged' if here.is_file() else 'missing'}; copy the whole folder again")


def is_inside(file: str) -> bool:
    """Return whether a relative path has no part that leads out of its folder."""
    parts = PurePosixPath(file).parts
    return bool(parts) and parts[0] != "/" and ".." not in parts


def is_name(name: str) -> bool:
    """Return whether a name is one part of a path."""
    return name not in ("", ".", "..") and not set("/\\\0") & set(name)


def add(path: Path, manifest: Mapping[str, Any], table: Path, words: str | None) -> Path:
    """Copy a checked run into the folder of a table and return its new folder.

    Args:
        path: The run.
        manifest: Its manifest.
        table: Folder of the table.
        words: Name of the origin. None: the device that computed the run.

    Raises:
        UserError: If the run cannot share the table; nothing is changed then.
    """
    origin = words or "; ".join(manifest.get("computed_on") or ["unknown device"])
    table.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".import-", dir=table.parent) as scratch:
        draft = Path(scratch) / path.resolve().name
        for file in manifest[CHECKSUMS]:
            (draft / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path / file, draft / file)
        files = {file: (draft / file).stat().st_size for file in manifest[CHECKSUMS]}
        mark = {IMPORTED: {"origin": origin, "folder": path.resolve().name}}
        OutputFolder(draft).write_manifest({**manifest, **mark}, files)
        runs = load_runs([*runs_of(table), draft])
        Table.of(runs, common_protocol(runs))  # raises UserError if they are not comparable
        target = table / draft.name
        if target.exists():
            target = table / f"{draft.name}-{manifest['key'][:8]}"
        table.mkdir(exist_ok=True)
        draft.rename(target)
    return target
