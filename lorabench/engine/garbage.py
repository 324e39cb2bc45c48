"""Files of a store that can be deleted: remains of killed runs, and artifacts that no run refers to.

Only names that are keys count, and only artifacts with a key.json, because the folder may also have other files.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from filelock import Timeout

from lorabench.base import UserError
from lorabench.engine.record import BROKEN, KEY_FILE, is_whole, read_record
from lorabench.engine.store import DIGESTS, DRAFTS, INTACT, LOCKS, PARTIAL, Store

MANIFEST = "manifest.json"  # file name of the manifest of a run folder
KEY = re.compile(r"[0-9a-f]{32}")
UNUSED_DAYS = 7.0  # artifacts used since then are kept, because a run in progress has no manifest yet
DAY = 86400.0


@dataclass(frozen=True)
class Garbage:
    """A file or folder that can be deleted.

    Args:
        why: The reason.
        path: The file or folder.
        key: Key of the artifact whose lock is held during the deletion.
        stands: Function that returns whether the reason still holds; called under that lock.
    """

    why: str
    path: Path
    key: str
    stands: Callable[[], bool] = lambda: True


def garbage(store: Store, outputs: Sequence[Path] | None = None, days: float | None = None) -> Iterator[Garbage]:
    """Yield all files and folders that can be deleted, unless a process is working on them.

    Args:
        store: The store.
        outputs: Folders of runs. If given, artifacts that no manifest in them leads to can be deleted as well.
        days: Artifacts that were not used for so many days can be deleted; with `outputs` 7 by default.
    """
    known = {path.name for path in artifact_folders(store)}
    for path in keyed(store.root / DRAFTS):
        yield Garbage("draft of a killed run", path, path.name)
    for path in keyed(store.root / PARTIAL):
        yield Garbage("unfinished training of a killed run, which it would go on from", path, path.name)
    for path in keyed(store.root / INTACT):
        if path.name not in known:
            yield Garbage("note on an artifact that is gone", path, path.name.strip("."))
    for path in keyed(store.root / DIGESTS):
        if path.is_file() and (source := os.fsdecode(path.read_bytes())[65:]) and not Path(source).exists():
            yield Garbage("digest of a model that is gone", path, path.name)
    used = reachable(store, outputs) if outputs is not None else set[str]()
    least = days if days is not None else UNUSED_DAYS
    for path in artifact_folders(store):
        if not is_whole(path):
            yield Garbage("damaged", path, path.name, lambda path=path: not is_whole(path))
        elif (outputs is not None or days is not None) and path.name not in used and is_unused(store, path, least):
            yield Garbage("unused", path, path.name, partial(is_unused, store, path, least))
    for path in keyed(store.root / LOCKS):
        if path.suffix == ".lock":
            yield Garbage("lock that nobody holds", path, path.stem)


def remove(store: Store, garbage: Garbage) -> bool:
    """Delete the file or folder under its artifact's lock.

    Returns:
        False, if another process holds the lock or has recomputed the artifact.
    """
    lock = store.lock(garbage.key)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    try:
        if not (garbage.path.exists() and garbage.stands()):
            return False
        if garbage.path.is_dir():
            doomed = store.draft(garbage.key)
            if doomed != garbage.path:  # renamed first, so that a reader finds a complete artifact or none
                shutil.rmtree(doomed, ignore_errors=True)
                doomed.parent.mkdir(exist_ok=True)
                os.replace(garbage.path, doomed)
            shutil.rmtree(doomed)
        else:
            garbage.path.unlink(missing_ok=True)
        # A process that waits for the lock notices that the file it has locked was deleted, and opens a new one.
        Path(lock.lock_file).unlink(missing_ok=True)
    finally:
        lock.release()
    return True


def is_free(store: Store, key: str) -> bool:
    """Return whether no process holds the artifact's lock."""
    if (store.root / LOCKS / f"{key}.lock").exists():
        try:
            with store.lock(key).acquire(timeout=0):
                return True
        except Timeout:
            return False
    return True


def artifact_folders(store: Store) -> Iterator[Path]:
    """Yield the folders of all artifacts, sorted by stage and key."""
    for stage in listed(store.root):
        if not stage.name.startswith("."):
            yield from (path for path in listed(stage) if KEY.fullmatch(path.name) and (path / KEY_FILE).is_file())


def keyed(folder: Path) -> list[Path]:
    """Return the files and folders whose name begins with a key, after the dot of a hidden one."""
    return [path for path in listed(folder) if KEY.match(path.name.removeprefix("."))]


def listed(folder: Path) -> list[Path]:
    """Return the sorted paths in a folder; an empty list if it does not exist."""
    return sorted(folder.iterdir()) if folder.is_dir() else []


def reachable(store: Store, outputs: Sequence[Path]) -> set[str]:
    """Return the keys in the manifests below these folders, and the keys of all their direct and indirect inputs."""
    waiting: set[str] = set()
    for folder in outputs:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}; use --unused <a folder of runs>")
        for manifest in manifests(folder):
            waiting |= set(KEY.findall(json.dumps(read_manifest(manifest))))
    paths = {path.name: path for path in artifact_folders(store)}
    reached: set[str] = set()
    while waiting:
        key = waiting.pop()
        reached.add(key)
        if key in paths:
            waiting |= keys_in(paths[key]) - reached
    return reached


def manifests(folder: Path) -> Iterator[Path]:
    """Return the manifests of all runs below a folder.

    Raises:
        UserError: If a folder cannot be read, because artifacts that it refers to would be deleted.
    """

    def unread(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # a run may have removed the folder meanwhile
            raise UserError(f"{error.filename} cannot be read ({error.strerror}); make it readable") from error

    return (Path(place) / MANIFEST for place, _, files in os.walk(folder, onerror=unread) if MANIFEST in files)


def read_manifest(file: Path) -> Any:
    """Return the manifest of a run.

    Raises:
        UserError: If it cannot be read.
    """
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is broken"
        raise UserError(f"{file} cannot be read ({reason}); run the run's command again, or remove it") from error


def keys_in(path: Path) -> set[str]:
    """Return the keys of an artifact's inputs; an empty set if its key.json is damaged."""
    try:
        parts: dict[str, Any] = read_record(path)["parts"]
    except BROKEN:
        return set()
    return set(KEY.findall(json.dumps(parts)))


def is_unused(store: Store, path: Path, days: float) -> bool:
    """Return whether no run has used the artifact for so many days (with an accuracy of one hour)."""
    note = store.root / INTACT / path.name
    last = (note if note.exists() else path / KEY_FILE).stat().st_mtime
    return time.time() - last > days * DAY


def size_of(path: Path) -> int:
    """Return the size of a file, or of all files in a folder, in bytes."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
