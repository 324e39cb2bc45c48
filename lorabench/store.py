"""The content-addressed store: what a stage made, found by everything that determines it.

An artifact is a folder `<root>/<stage>/<key>/` with the stage's files and `key.json`. The key is the hash of the
stage's name and its parts: the stage's config slice, the keys or hashes of its inputs, its code version; never a
device, a logger or a path. An artifact is written beside, checked and renamed, so it is whole or absent; a failure
leaves nothing. One lock a key lets any number of processes share a store.

    python -m lorabench.store why <artifact folder> <artifact folder>     which part of two keys differs
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from lorabench.errors import UserError

KEY_FILE = "key.json"
WEIGHT_SUFFIXES = {".safetensors", ".json", ".txt", ".model", ".bin"}


def canonical(parts: Mapping[str, Any]) -> str:
    """JSON with sorted keys: equal parts give equal text, whatever their order."""
    return json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)


def key_of(stage: str, parts: Mapping[str, Any]) -> str:
    return hashlib.sha256(f"{stage}:{canonical(parts)}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Store:
    root: Path

    def path(self, stage: str, parts: Mapping[str, Any]) -> Path:
        """Where the artifact lies or will lie."""
        return self.root / stage / key_of(stage, parts)

    def find(self, stage: str, parts: Mapping[str, Any]) -> Path | None:
        """The artifact's folder if it is there and whole."""
        path = self.path(stage, parts)
        return path if is_whole(path) else None

    def scratch(self, stage: str, parts: Mapping[str, Any]) -> Path:
        """Where a long `make` may keep what a killed one goes on from; gone once the artifact is there."""
        return self.root / ".partial" / key_of(stage, parts)

    def get_or_make(self, stage: str, parts: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        """The artifact's folder, made by `make(empty folder)` unless it is there.

        Raises whatever `make` raises; nothing is kept then.
        """
        path = self.path(stage, parts)
        if is_whole(path):
            return path
        with self._lock(path):
            if is_whole(path):
                return path
            draft = self.root / ".drafts" / path.name
            shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed: we hold its lock
            draft.mkdir(parents=True)
            try:
                make(draft)
                files = {file: (draft / file).stat().st_size for file in files_of(draft)}
                if not files:
                    raise RuntimeError(f"stage {stage} made no file")
                record = {"stage": stage, "parts": parts, "files": files}
                (draft / KEY_FILE).write_text(json.dumps(record, indent=1, sort_keys=True))
                shutil.rmtree(path, ignore_errors=True)  # an artifact that lost a file
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(draft, path)
                shutil.rmtree(self.scratch(stage, parts), ignore_errors=True)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        return path

    def get_or_make_all(
        self, stage: str, wanted: Sequence[Mapping[str, Any]], make: Callable[[dict[str, Path]], None]
    ) -> None:
        """Several artifacts of a stage by one `make({key: empty folder})` of those that are not there.

        Their locks are taken in the order of the keys, so that two processes never wait for each other.
        """
        rest = sorted(wanted, key=lambda parts: key_of(stage, parts))

        def enter(index: int, drafts: dict[str, Path]) -> None:
            if index == len(rest):
                if drafts:
                    make(drafts)
                return
            lacking: list[Path] = []

            def hold(folder: Path) -> None:
                lacking.append(folder)
                enter(index + 1, drafts | {key_of(stage, rest[index]): folder})

            self.get_or_make(stage, rest[index], hold)
            if not lacking:
                enter(index + 1, drafts)

        enter(0, {})

    def _lock(self, path: Path) -> FileLock:
        locks = self.root / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        return FileLock(locks / f"{path.name}.lock")

    def digest(self, *sources: Path) -> str:
        """Hash of the weights and configs of model folders, or of single files, in this order."""
        digests = [self._digest(source) for source in sources]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def _digest(self, source: Path) -> str:
        """Remembered by size and time of change, weights are large."""
        folder, names = (source, files_of(source)) if source.is_dir() else (source.parent, [source.name])
        files = [file for file in names if Path(file).suffix in WEIGHT_SUFFIXES]
        stats = {file: (folder / file).stat() for file in files}
        fingerprint = [[file, stat.st_size, stat.st_mtime_ns, stat.st_ino] for file, stat in stats.items()]
        memo = self.root / ".digests" / key_of("digest", {"folder": str(source.resolve()), "files": fingerprint})
        if memo.is_file() and len(known := memo.read_text()) == 64:
            return known
        digest = hashlib.sha256(canonical({file: sha256(folder / file) for file in files}).encode()).hexdigest()
        memo.parent.mkdir(parents=True, exist_ok=True)
        memo.write_text(digest)
        return digest


def is_whole(path: Path) -> bool:
    """Whether the artifact is there with every file at its recorded size."""
    try:
        files: dict[str, int] = json.loads((path / KEY_FILE).read_text())["files"]
        return all((path / file).stat().st_size == size for file, size in files.items())
    except (OSError, ValueError, KeyError):
        return False


def files_of(folder: Path) -> list[str]:
    """Relative paths of all files, sorted; hidden ones left out."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path.as_posix()) for path in found if not any(part.startswith(".") for part in path.parts))


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def why(left: Path, right: Path) -> list[str]:
    """The parts in which two artifacts' keys differ, as lines 'part: left -> right'."""
    sides = [dict(flat(read_key(path))) for path in (left, right)]
    names = sorted(set(sides[0]) | set(sides[1]))
    rows = ((name, sides[0].get(name, "absent"), sides[1].get(name, "absent")) for name in names)
    return [f"{name}: {a} -> {b}" for name, a, b in rows if a != b]


def read_key(path: Path) -> dict[str, Any]:
    """Stage and parts of an artifact's key; raises UserError where there is none."""
    try:
        record = json.loads((path / KEY_FILE).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no artifact of a store; type the folder that holds a {KEY_FILE}") from error
    return {"stage": record["stage"], **record["parts"]}


def flat(value: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in items:
            yield from flat(child, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def main(arguments: list[str]) -> int:
    if len(arguments) != 3 or arguments[0] != "why":
        print("type: python -m lorabench.store why <artifact folder> <artifact folder>", file=sys.stderr)
        return 2
    try:
        lines = why(Path(arguments[1]), Path(arguments[2]))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(lines) or "the keys are equal")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
