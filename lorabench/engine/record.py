"""The record of an artifact, key.json in its folder, with which damage is detected.

key.json holds the stage and name, the parts of the key, and the size and sha256 of every file.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

KEY_FILE = "key.json"
BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError)  # errors of reading a damaged key.json


def canonical(parts: Mapping[str, Any]) -> str:
    """Return JSON with sorted keys, so that equal parts give equal text in any order."""
    return json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)


def key_of(stage: str, parts: Mapping[str, Any]) -> str:
    """Return the hash of a stage and the parts of a key: 32 hexadecimal digits."""
    return hashlib.sha256(f"{stage}:{canonical(parts)}".encode()).hexdigest()[:32]


def seal(folder: Path, stage: str, parts: Mapping[str, Any], name: str) -> None:
    """Write key.json of a finished folder.

    Args:
        folder: The folder with its files.
        stage: Stage of the artifact.
        parts: Parts of its key.
        name: Its name in messages.

    Raises:
        RuntimeError: If the folder has no file.
    """
    files = files_of(folder)
    if not files:
        raise RuntimeError(f"stage {stage} made no file")
    record = {
        "stage": stage,
        "name": name,
        "parts": parts,
        "files": {file: (folder / file).stat().st_size for file in files},
        "sha256": {file: sha256(folder / file) for file in files},
    }
    (folder / KEY_FILE).write_text(json.dumps(record, indent=1, sort_keys=True))


def read_record(path: Path) -> dict[str, Any]:
    """Return the content of key.json; raises one of BROKEN if it is missing or damaged."""
    return json.loads((path / KEY_FILE).read_text())


def is_whole(path: Path) -> bool:
    """Return whether every file of the artifact has its recorded size. This is quick, but misses flipped bits."""
    try:
        files: dict[str, int] = read_record(path)["files"]
        return all((path / file).stat().st_size == size for file, size in files.items())
    except BROKEN:
        return False


def damage(path: Path) -> list[str]:
    """Return the files of the artifact that differ from their checksums. Every byte is read.

    Files without checksums (of older versions) are compared by size.
    """
    try:
        record = read_record(path)
        if key_of(record["stage"], record["parts"]) != path.name:
            return [KEY_FILE]
        digests: dict[str, str] = record.get("sha256", {})
        sizes: dict[str, int] = record["files"]
        return [file for file, size in sizes.items() if not is_as_made(path / file, size, digests.get(file))]
    except BROKEN:
        return [KEY_FILE]


def is_as_made(file: Path, size: int, digest: str | None) -> bool:
    """Return whether a file has this size and, if given, this sha256."""
    return file.is_file() and file.stat().st_size == size and digest in (None, sha256(file))


def fingerprint(path: Path) -> str:
    """Return text that changes when a file of the artifact changes: sizes, modification times and inodes."""
    stats = {file: (path / file).stat() for file in [*read_record(path)["files"], KEY_FILE]}
    return canonical({file: [stat.st_size, stat.st_mtime_ns, stat.st_ino] for file, stat in stats.items()})


def files_of(folder: Path) -> list[str]:
    """Return the sorted relative paths of all files in a folder, without hidden ones."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path.as_posix()) for path in found if not any(part.startswith(".") for part in path.parts))


def sha256(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under another name and rename it, so that other processes see it complete or not at all.

    Args:
        path: The file.
        write: Called with the path to write to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}")
    try:
        write(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
