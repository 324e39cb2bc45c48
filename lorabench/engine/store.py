"""The content-addressed store: what a stage made, found by everything that determines it.

An artifact is a folder `<root>/<stage>/<key>/` with the stage's files and `key.json`. The key is the hash of the
stage's name and its parts: the stage's config slice, the keys or hashes of its inputs, its code version; never a
device, a logger or a path. An artifact is written beside, checked and renamed, so it is whole or absent; a failure
leaves nothing.

Checksums: `key.json` holds the sha256 of every file. They are compared when an artifact is first found, and again when
one of its files has another size, time of change or inode than then (`.intact/<key>` remembers), so a file is hashed
once and a changed one is made anew. A bit that rots under an unchanged time of change is found by `check`. Artifacts
of older stores have no checksums; their sizes must do.

Locks: one a key, taken while it is made, so any number of processes share a store and make each artifact once. It is
`flock(2)` through the package filelock: the kernel frees it when its holder ends, however it ends. It holds across the
nodes of a cluster where the file system carries it to the server: NFS (Linux clients turn it into a byte-range lock;
not with `local_lock=flock|all`, nor `nolock`), Lustre mounted with `flock` (not `localflock`), GPFS, BeeGFS with
`tuneUseGlobalFileLocks`, CephFS. Where a file system has no locks, opening the store raises UserError: filelock would
go over to files whose mere presence is the lock, and those outlive a killed holder.

    python -m lorabench.engine.store ls [stage]       what it holds
    python -m lorabench.engine.store why A B          which parts of two keys, or which stages of two runs, differ
    python -m lorabench.engine.store check            read every byte and compare the checksums
    python -m lorabench.engine.store gc [--delete]    what killed runs left, and with --unused what no run refers to
"""

import fcntl
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from lorabench.base import UserError
from lorabench.engine.artifact import (
    BROKEN,
    canonical,
    damage,
    files_of,
    fingerprint,
    is_whole,
    key_of,
    seal,
    sha256,
    write_whole,
)
from lorabench.engine.failures import FORBIDDEN, system_fault

WEIGHT_SUFFIXES = {".safetensors", ".json", ".txt", ".model", ".bin"}
LOCKS, DRAFTS, PARTIAL, INTACT, DIGESTS = ".locks", ".drafts", ".partial", ".intact", ".digests"
USED_EVERY = 3600  # seconds between two notes that an artifact is in use


@dataclass(frozen=True)
class Store:
    root: Path

    @classmethod
    def open(cls, root: Path) -> "Store":
        """The store in a folder, which is made if need be; UserError where its file system has no locks."""
        root.mkdir(parents=True, exist_ok=True)
        check_locks(root)
        return cls(root)

    def path(self, stage: str, parts: Mapping[str, Any]) -> Path:
        """Where the artifact lies or will lie."""
        return self.root / stage / key_of(stage, parts)

    def find(self, stage: str, parts: Mapping[str, Any]) -> Path | None:
        """The artifact's folder if it is there and as it was made."""
        path = self.path(stage, parts)
        return path if self.is_intact(path) else None

    def scratch(self, stage: str, parts: Mapping[str, Any]) -> Path:
        """Where a long `make` may keep what a killed one goes on from; gone once the artifact is there."""
        return self.root / PARTIAL / key_of(stage, parts)

    def draft(self, key: str) -> Path:
        """Where an artifact is written by whoever holds its lock."""
        return self.root / DRAFTS / key

    def get_or_make(self, stage: str, parts: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        """The artifact's folder, made by `make(empty folder)` unless it is there.

        Raises whatever `make` raises, and UserError where the disk is full or read-only; nothing is kept then.
        """
        path = self.path(stage, parts)
        if not self.is_intact(path):
            with self._making(stage, parts) as draft:
                if draft is not None:
                    make(draft)
        return path

    def get_or_make_all(
        self, stage: str, wanted: Sequence[Mapping[str, Any]], make: Callable[[dict[str, Path]], None]
    ) -> None:
        """Several artifacts of a stage by one `make({key: empty folder})` of those that are not there.

        Their locks are taken in the order of the keys, so that two processes never wait for each other.
        """
        parts_of = {key_of(stage, parts): parts for parts in wanted}
        with ExitStack() as held:
            drafts = {key: held.enter_context(self._making(stage, parts_of[key])) for key in sorted(parts_of)}
            lacking = {key: draft for key, draft in drafts.items() if draft is not None}
            if lacking:
                make(lacking)

    @contextmanager
    def _making(self, stage: str, parts: Mapping[str, Any]) -> Iterator[Path | None]:
        """Under the artifact's lock an empty folder, which becomes the artifact unless the block raises.

        None, and no lock, where the artifact is there by now.
        """
        path = self.path(stage, parts)
        draft = self.draft(path.name)
        with self.explained(), ExitStack() as held:
            held.enter_context(self.lock(path.name))
            if self.is_intact(path):
                held.close()
                yield None
                return
            shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed: we hold its lock
            draft.mkdir(parents=True)
            try:
                with self.explained(draft):
                    yield draft
                    seal(draft, stage, parts)
                    self._remember(path.name, fingerprint(draft))
                    shutil.rmtree(path, ignore_errors=True)  # a damaged one
                    path.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(draft, path)
                    shutil.rmtree(self.scratch(stage, parts), ignore_errors=True)
            finally:
                shutil.rmtree(draft, ignore_errors=True)

    def lock(self, key: str) -> FileLock:
        locks = self.root / LOCKS
        locks.mkdir(parents=True, exist_ok=True)
        return FileLock(locks / f"{key}.lock")

    def is_intact(self, path: Path) -> bool:
        """Whether the artifact is as it was made; its bytes are read only where a file changed since they last were."""
        if not is_whole(path):
            return False
        try:
            now, memo = fingerprint(path), self.root / INTACT / path.name
            if not (memo.is_file() and memo.read_text() == now):
                if damage(path):
                    return False
                self._remember(path.name, now)
            elif time.time() - memo.stat().st_mtime > USED_EVERY:
                with suppress(OSError):  # a store that we may only read
                    os.utime(memo)  # gc goes by it
        except BROKEN:  # it was removed meanwhile
            return False
        return True

    def _remember(self, key: str, text: str) -> None:
        with suppress(OSError):  # a store that cannot be written to is hashed again each time
            write_whole(self.root / INTACT / key, lambda draft: draft.write_text(text))

    @contextmanager
    def explained(self, draft: Path | None = None) -> Iterator[None]:
        """Raise UserError for what a full, a read-only or a vanished disk does to a block that works with the store.

        draft: the folder that the block fills, where it does.
        """
        try:
            yield
        except Exception as error:
            if line := system_fault(error, str(self.root), draft):
                raise UserError(line) from error
            raise

    def digest(self, *sources: Path) -> str:
        """Hash of the weights and configs of model folders, or of single files, in this order."""
        digests = [self._digest(source) for source in sources]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def _digest(self, source: Path) -> str:
        """Remembered by size and time of change, weights are large."""
        folder, names = (source, files_of(source)) if source.is_dir() else (source.parent, [source.name])
        files = [file for file in names if Path(file).suffix in WEIGHT_SUFFIXES]
        stats = {file: (folder / file).stat() for file in files}
        known = [[file, stat.st_size, stat.st_mtime_ns, stat.st_ino] for file, stat in stats.items()]
        memo = self.root / DIGESTS / key_of("digest", {"folder": str(source.resolve()), "files": known})
        if memo.is_file() and len(digest := memo.read_text()[:64]) == 64:
            return digest
        digest = hashlib.sha256(canonical({file: sha256(folder / file) for file in files}).encode()).hexdigest()
        with suppress(OSError):  # a store that we may only read
            write_whole(memo, lambda draft: draft.write_text(f"{digest} {source.resolve()}"))  # gc reads the path
        return digest


def check_locks(root: Path) -> None:
    """UserError where files of this folder cannot be locked."""
    try:
        (root / LOCKS).mkdir(exist_ok=True)
        file = (root / LOCKS / "probe").open("a+")
    except OSError as error:
        if error.errno in FORBIDDEN:
            return  # it can only be read, so nothing will be locked
        raise
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH)
        except OSError as error:
            raise UserError(
                f"files in {root} cannot be locked ({error.strerror}), which keeps runs that share a store apart; "
                "type store=<a folder on another file system>"
            ) from error


if __name__ == "__main__":
    from lorabench.engine.store_commands import main

    sys.exit(main(sys.argv[1:]))
