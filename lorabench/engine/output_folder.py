"""Folders that a command fills, in which only files written by lorabench are replaced or removed.

`manifest.json` of such a folder lists every file that lorabench wrote into it, with its size. A folder without files
and a folder with such a manifest are ours; any other folder belongs to the user and is refused. A file that the
manifest does not list belongs to the user, too, wherever it is. New files are written to a hidden draft folder and
moved at the end, so a command that fails or is killed leaves the earlier files as they were.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import EACCES
from pathlib import Path, PurePosixPath
from tempfile import TemporaryFile
from typing import Any

from lorabench.base import UserError, __version__
from lorabench.engine.commit import commit
from lorabench.engine.failures import unwritable
from lorabench.engine.record import BROKEN, files_of, write_whole

MANIFEST = "manifest.json"
DRAFT = ".draft-"  # followed by the machine and the process that fills it
UNFINISHED = "unfinished"  # key of the manifest until a command has filled the folder
INCOMPLETE = "incomplete"  # key of the manifest if a part of the work failed


@dataclass(frozen=True)
class OutputFolder:
    """A folder to fill.

    Args:
        path: The folder; it need not exist.
        instead: Setting to recommend for another folder.
    """

    path: Path
    instead: str = "hydra.run.dir=<an empty folder>"

    def manifest(self) -> dict[str, Any]:
        """Return the manifest, or an empty dict if the folder has none of ours."""
        try:
            found = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
            return found if isinstance(found["files"], dict) and found["versions"]["lorabench"] else {}
        except BROKEN:
            return {}

    def files(self) -> dict[str, int]:
        """Return the files of ours with their sizes in bytes, by path relative to the folder."""
        return self.manifest().get("files", {})

    @property
    def is_unfinished(self) -> bool:
        """Return whether the folder is ours and no command has filled it yet."""
        return UNFINISHED in self.manifest()

    def check(self, ignored: Iterable[str] = ()) -> None:
        """Check that the folder may be filled; nothing is written.

        Args:
            ignored: Names to ignore, such as the log of a library.

        Raises:
            UserError: If it is not a folder, or if it holds files but no manifest of ours.
        """
        if os.path.lexists(self.path) and not self.path.is_dir():
            raise UserError(f"{self.path} is not a folder; use {self.instead}")
        if self.path.is_dir() and not self.manifest() and (others := sorted(visible(self.path) - set(ignored))):
            raise UserError(
                f"{self.path} has files that lorabench did not write ({summary(others)}) and is left as it is; "
                f"use {self.instead}"
            )

    def check_free(self, names: Iterable[str] = ()) -> None:
        """Check that a manifest and files of these names may be written, whatever else is in the folder.

        Raises:
            UserError: If one of them, or a file in place of its folder, is the user's.
        """
        known = self.manifest()
        listed = {MANIFEST, *known["files"]} if known else set()
        for name in [MANIFEST, *names]:
            if name in listed:
                continue
            above = [str(folder) for folder in PurePosixPath(name).parents][:-1]
            taken = next((each for each in above if (self.path / each).is_file()), None)
            if taken or os.path.lexists(self.path / name):
                raise UserError(
                    f"{self.path / (taken or name)} was not written by lorabench and is left as it is; move it, or "
                    f"use {self.instead}"
                )

    def claim(self) -> None:
        """Write an empty manifest, so that the files of a killed command are known to be ours."""
        if not self.manifest():
            self.check_free()
            self.write_manifest({UNFINISHED: True}, {})

    def add(self, name: str) -> Path:
        """List a file and return its path; it is ours from now on.

        Raises:
            UserError: If a file of the user's has that name.
        """
        self.check_free([name])
        found, listed = self.manifest(), self.files()
        if name not in listed:
            self.write_manifest(found, listed | {name: 0})
        return self.path / name

    def remove(self, name: str) -> None:
        """Remove a file if it is ours."""
        found, listed = self.manifest(), self.files()
        if name in listed:
            (self.path / name).unlink(missing_ok=True)
            self.write_manifest(found, {file: size for file, size in listed.items() if file != name})

    @contextmanager
    def filled(self, keep: bool = False) -> Iterator[Path]:
        """Yield an empty draft folder, whose files replace those of ours if the block succeeds.

        A `manifest.json` in the draft becomes the manifest.

        Args:
            keep: Keep the manifest and those files of ours that the draft does not have.

        Raises:
            UserError: If a file of the user's has the name of a new one; nothing is changed then.
        """
        draft = self.path / f"{DRAFT}{os.uname().nodename}-{os.getpid()}"
        for old in self.path.glob(f"{DRAFT}{os.uname().nodename}-*"):
            if old == draft or not is_running(old.name.rpartition("-")[2]):  # left by a killed command
                shutil.rmtree(old, ignore_errors=True)
        self.path.mkdir(parents=True, exist_ok=True)
        draft.mkdir()
        try:
            yield draft
            self._move(draft, keep)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _move(self, draft: Path, keep: bool) -> None:
        own, old = self.manifest(), self.files()
        made = json.loads((draft / MANIFEST).read_text()) if (draft / MANIFEST).is_file() else {}
        new = {file: (draft / file).stat().st_size for file in files_of(draft) if file != MANIFEST}
        self.check_free(new)
        self.write_manifest(own if keep else {UNFINISHED: True}, old | new)  # for a command that is killed from here on
        gone = set() if keep else old.keys() - new.keys()
        for file in gone:
            (self.path / file).unlink(missing_ok=True)
        for file in new:
            (self.path / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(draft / file, self.path / file)
        emptied = {folder for file in gone for folder in [*PurePosixPath(file).parents][:-1]}
        for folder in sorted(emptied, key=lambda each: len(each.parts), reverse=True):
            with suppress(OSError):  # it holds other files
                (self.path / folder).rmdir()
        self.write_manifest(own | made if keep else made, old | new if keep else new)

    def write_manifest(self, manifest: Mapping[str, Any], files: Mapping[str, int]) -> None:
        """Write the manifest with this list of files, and with the commit if it has none."""
        versions = {"lorabench": __version__, **manifest.get("versions", {})}
        whole = {"commit": commit(), **manifest, "versions": versions, "files": dict(files)}
        write_whole(self.path / MANIFEST, lambda draft: draft.write_text(json.dumps(whole, indent=1)))


def is_running(pid: str) -> bool:
    """Return whether this machine has a process of that number."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def visible(folder: Path) -> set[str]:
    """Return the names in a folder, without hidden ones and folders that hold no file."""
    paths = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return {path.name for path in paths if not path.is_dir() or any(files for *_, files in os.walk(path))}


def summary(names: list[str], most: int = 3) -> str:
    """Return the first names and how many there are more.

    >>> summary(["a", "b"]), summary(["a", "b", "c", "d"], 2)
    ('a, b', 'a, b and 2 more')
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def make_folder(folder: Path) -> None:
    """Create a folder; raise UserError if files cannot be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(unwritable(error.errno or EACCES, str(folder))) from None
