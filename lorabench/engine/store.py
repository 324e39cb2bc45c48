"""The content-addressed store: artifacts are found by the hash of everything that determines them.

An artifact is a folder `<root>/<stage>/<key>/` with its files and `key.json`. The key (see `Artifact`) never contains a
device, a logger or a path. An artifact is written to a temporary folder, sealed with checksums and renamed, so it is
complete or absent; a failure leaves nothing.

Checksums: `key.json` holds the sha256 of every file. They are compared when an artifact is first found, and again when
the size, modification time or inode of one of its files has changed (`.intact/<key>` has the last ones). So a file is
hashed once, and a changed file is recomputed. `check` finds flipped bits under an unchanged modification time.
Artifacts of older stores have no checksums; only their sizes are compared.

Locks: an artifact is locked while it is computed, so several processes can share a store and compute each artifact
once. The lock is `flock(2)` through the package filelock: the kernel releases it when its holder ends, for whatever
reason. It works across the nodes of a cluster if the file system passes it to the server: NFS (Linux clients turn it
into a byte-range lock; not with `local_lock=flock|all` or `nolock`), Lustre mounted with `flock` (not `localflock`),
GPFS, BeeGFS with `tuneUseGlobalFileLocks`, CephFS. If a file system has no locks, opening the store raises UserError.
filelock would fall back to files whose existence is the lock, and those outlive a killed holder.

`python -m lorabench.engine` lists, compares, checks and cleans a store.
"""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from lorabench.base import UserError
from lorabench.engine.artifact import Artifact
from lorabench.engine.failures import FORBIDDEN, system_fault
from lorabench.engine.record import (
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

WEIGHT_SUFFIXES = {".safetensors", ".json", ".txt", ".model", ".bin"}
LOCKS, DRAFTS, PARTIAL, INTACT, DIGESTS = ".locks", ".drafts", ".partial", ".intact", ".digests"
USED_EVERY = 3600  # seconds between two records that an artifact is in use


@dataclass(frozen=True)
class Store:
    """A store in the folder `root`."""

    root: Path

    @classmethod
    def open(cls, root: Path) -> "Store":
        """Return the store in a folder, which is created if it does not exist.

        Raises:
            UserError: If it is not a folder, or its file system has no locks.
        """
        try:
            root.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(f"store={root} must be a folder; use store=<a folder>") from error
        check_locks(root)
        return cls(root)

    def path(self, artifact: Artifact) -> Path:
        """Return the artifact's folder, whether it exists or not."""
        return self.root / artifact.stage / artifact.key

    def find(self, artifact: Artifact) -> Path | None:
        """Return the artifact's folder, or None if missing or damaged."""
        path = self.path(artifact)
        return path if self.is_intact(path) else None

    def scratch(self, artifact: Artifact) -> Path:
        """Return a folder from which an interrupted computation can resume; it is removed when the artifact is done."""
        return self.root / PARTIAL / artifact.key

    def draft(self, key: str) -> Path:
        """Return the folder in which the holder of the artifact's lock writes."""
        return self.root / DRAFTS / key

    def get_or_make(self, artifact: Artifact, make: Callable[[Path], None]) -> Path:
        """Return the artifact's folder; `make(empty folder)` fills it if the artifact is missing.

        Raises:
            UserError: If the disk is full or read-only. After this or any error of `make`, no file is kept.
        """
        path = self.path(artifact)
        if not self.is_intact(path):
            with self._making(artifact) as draft:
                if draft is not None:
                    make(draft)
        return path

    def get_or_make_all(self, artifacts: Sequence[Artifact], make: Callable[[dict[str, Path]], None]) -> None:
        """Fill the folders of the missing artifacts by one call of `make({key: empty folder})`.

        Their locks are taken in the order of the keys, so that two processes never wait for each other.
        """
        by_key = {each.key: each for each in artifacts}
        with ExitStack() as held:
            drafts = {key: held.enter_context(self._making(by_key[key])) for key in sorted(by_key)}
            lacking = {key: draft for key, draft in drafts.items() if draft is not None}
            if lacking:
                make(lacking)

    @contextmanager
    def _making(self, artifact: Artifact) -> Iterator[Path | None]:
        """Yield an empty folder under the artifact's lock, which becomes the artifact unless the block raises.

        Yields None, without a lock, if the artifact exists by now.
        """
        path = self.path(artifact)
        draft = self.draft(path.name)
        with self.explained(), ExitStack() as held:
            held.enter_context(self.lock(path.name))
            if self.is_intact(path):
                held.close()
                yield None
                return
            shutil.rmtree(draft, ignore_errors=True)  # left by a killed process: we hold its lock
            draft.mkdir(parents=True)
            try:
                with self.explained(draft):
                    yield draft
                    seal(draft, artifact.stage, artifact.parts, artifact.name)
                    self._remember(path.name, fingerprint(draft))
                    shutil.rmtree(path, ignore_errors=True)  # a damaged one
                    path.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(draft, path)
                    shutil.rmtree(self.scratch(artifact), ignore_errors=True)
            finally:
                shutil.rmtree(draft, ignore_errors=True)

    def lock(self, key: str) -> FileLock:
        """Return the lock of the artifact with this key."""
        locks = self.root / LOCKS
        locks.mkdir(parents=True, exist_ok=True)
        return FileLock(locks / f"{key}.lock")

    def is_intact(self, path: Path) -> bool:
        """Return whether the artifact is undamaged. Its bytes are read if they are unread or a file changed."""
        if not is_whole(path):
            return False
        try:
            now, memo = fingerprint(path), self.root / INTACT / path.name
            if not (memo.is_file() and memo.read_text() == now):
                if damage(path):
                    return False
                self._remember(path.name, now)
            elif time.time() - memo.stat().st_mtime > USED_EVERY:
                with suppress(OSError):  # a read-only store
                    os.utime(memo)  # gc reads this time
        except BROKEN:  # the artifact was removed meanwhile
            return False
        return True

    def _remember(self, key: str, text: str) -> None:
        with suppress(OSError):  # a read-only store is hashed each time
            write_whole(self.root / INTACT / key, lambda draft: draft.write_text(text, encoding="utf-8"))

    @contextmanager
    def explained(self, draft: Path | None = None) -> Iterator[None]:
        """Raise UserError if the block, which works with the store, fails because the disk is full, read-only or gone.

        Args:
            draft: The folder that the block fills, if any.
        """
        try:
            yield
        except Exception as error:
            if line := system_fault(error, str(self.root), draft):
                raise UserError(line) from error
            raise

    def digest(self, *sources: Path) -> str:
        """Return the hash of files, and of the weights and configurations in folders, in this order."""
        digests = [self._digest(source) for source in sources]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def _digest(self, source: Path) -> str:
        """Return the hash of one file or folder. It is remembered by size and modification time: weights are large."""
        if source.is_dir():
            folder, files = source, [name for name in files_of(source) if Path(name).suffix in WEIGHT_SUFFIXES]
        else:
            folder, files = source.parent, [source.name]
        stats = {file: (folder / file).stat() for file in files}
        known = [[file, stat.st_size, stat.st_mtime_ns, stat.st_ino] for file, stat in stats.items()]
        memo = self.root / DIGESTS / key_of("digest", {"folder": str(source.resolve()), "files": known})
        if memo.is_file() and len(digest := os.fsdecode(memo.read_bytes())[:64]) == 64:
            return digest
        digest = hashlib.sha256(canonical({file: sha256(folder / file) for file in files}).encode()).hexdigest()
        with suppress(OSError):  # a read-only store
            named = os.fsencode(f"{digest} {source.resolve()}")  # gc reads the path
            write_whole(memo, lambda draft: draft.write_bytes(named))
        return digest


def check_locks(root: Path) -> None:
    """Check that files of this folder can be locked.

    Raises:
        UserError: If the file system has no locks.
    """
    try:
        (root / LOCKS).mkdir(exist_ok=True)
        file = (root / LOCKS / "probe").open("a+")
    except OSError as error:
        if error.errno in FORBIDDEN:
            return  # the folder is read-only, so no file will be locked
        raise
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH)
        except OSError as error:
            raise UserError(
                f"files in {root} cannot be locked ({error.strerror}), which runs that share a store need; "
                "use store=<a folder on another file system>"
            ) from error
