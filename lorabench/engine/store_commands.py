"""Command line for stores: list artifacts, explain why two differ, check for damage, delete unused ones."""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lorabench.base import UserError
from lorabench.engine.differences import differences
from lorabench.engine.failures import system_fault
from lorabench.engine.garbage import (
    DAY,
    artifact_folders,
    garbage,
    is_free,
    remove,
    size_of,
)
from lorabench.engine.record import BROKEN, KEY_FILE, canonical, damage, read_record
from lorabench.engine.store import INTACT, Store

WIDTH = 60  # characters of the description of an artifact without a name


@dataclass(frozen=True)
class Listed:
    """An artifact as its key.json describes it.

    Args:
        path: Its folder.
        stage: Its stage.
        made: Time at which it was finished, in seconds since the epoch.
        size: Size of its files in bytes.
        name: Its name; for an artifact of an older version, the beginning of its parameters.
    """

    path: Path
    stage: str
    made: float
    size: int
    name: str

    @classmethod
    def of(cls, path: Path) -> "Listed":
        """Read an artifact's key.json; raises one of BROKEN if it is damaged."""
        record = read_record(path)
        made = (path / KEY_FILE).stat().st_mtime
        name = record["name"] if "name" in record else canonical(record["parts"])[:WIDTH]
        return cls(path, record["stage"], made, sum(record["files"].values()), name)


def ls(store: Store, stage: str | None) -> list[str]:
    """Return one line per artifact, sorted by stage and age, and a line with the total."""
    found, damaged = [], 0
    for path in artifact_folders(store):
        if stage in (None, path.parent.name):
            try:
                found.append(Listed.of(path))
            except BROKEN:
                damaged += 1
    found.sort(key=lambda each: (each.path.parent.name, each.made, each.path.name))
    lines = [
        f"{each.stage:<12} {each.path.name}  {bytes_of(each.size):>8}  {age(each.made):>4}  {each.name}"
        for each in found
    ]
    note = f"; {damaged} damaged; run python -m lorabench.engine check" if damaged else ""
    return [*lines, f"{len(found)} artifacts, {bytes_of(sum(each.size for each in found))}{note}"]


def check(store: Store) -> list[str]:
    """Return one line per damaged artifact. Every byte is read. The next run recomputes damaged artifacts."""
    lines, unsealed, folders = [], 0, list(artifact_folders(store))
    for path in folders:
        if files := damage(path):
            (store.root / INTACT / path.name).unlink(missing_ok=True)  # so that it is read again
            lines.append(f"damaged: {path.parent.name}/{path.name} ({', '.join(files)})")
            with suppress(*BROKEN):
                lines[-1] += f"; {Listed.of(path).name}"
        elif "sha256" not in read_record(path):
            unsealed += 1
    note = f"; {unsealed} of an older version have no checksums, only their sizes were compared" if unsealed else ""
    return [*lines, f"{len(folders)} artifacts read, {len(lines)} damaged{note}"]


def bytes_of(count: float) -> str:
    """Return a number of bytes with its unit.

    >>> bytes_of(999), bytes_of(1_234_567)
    ('999 B', '1.2 MB')
    """
    units = ("B", "kB", "MB", "GB", "TB")
    step = next((i for i, _ in enumerate(units) if count < 1000 ** (i + 1)), len(units) - 1)
    return f"{count / 1000**step:.{1 if step else 0}f} {units[step]}"


def age(since: float) -> str:
    """Return the time since then in minutes, hours or days."""
    seconds = max(time.time() - since, 0)
    for size, unit in ((DAY, "d"), (3600, "h")):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds / 60:.0f}m"


def gc(store: Store, delete: bool, outputs: Sequence[Path] | None, days: float | None) -> list[str]:
    """Return one line per folder and one per kind of file that can be deleted.

    Args:
        store: The store.
        delete: Delete them, unless a process works on them.
        outputs: Folders of runs, see `garbage`.
        days: Days without use, see `garbage`.
    """
    lines, small, total, busy = [], Counter[str](), 0, 0
    for each in garbage(store, outputs, days):
        size, is_file = size_of(each.path), each.path.is_file()
        if not (remove(store, each) if delete else is_free(store, each.key)):
            busy += 1
            continue
        total += size
        if is_file:
            small[each.why] += 1
        else:
            lines.append(f"{each.why}: {each.path.relative_to(store.root)} ({bytes_of(size)})")
    lines += [f"{kind}: {count} files" for kind, count in small.items()]
    done = "removed" if delete else "to remove; use --delete as well"
    kept = [f"{busy} in use, kept"] if busy else []
    return [*lines, "; ".join([f"{bytes_of(total)} {done}" if lines else "nothing to remove", *kept])]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    root = argparse.ArgumentParser(prog="python -m lorabench.engine", description=__doc__)
    commands = root.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument(
            "--store", type=Path, default=Path("outputs/store"), help="folder of the store (default: outputs/store)"
        )
        return added

    command("ls", "list the artifacts: stage, key, size, age, name").add_argument("stage", nargs="?")
    differ = command("why", "which parts of two artifacts' keys, or which items of two runs, differ")
    differ.add_argument("sides", nargs=2, metavar="folder|[stage/]key", help="the beginning of a key is enough")
    command("check", "read every byte and compare the checksums; the next run recomputes damaged artifacts")
    clean = command("gc", "list remains of killed runs; --delete removes them, but no artifact in progress")
    clean.add_argument("--delete", action="store_true", help="remove the listed files")
    clean.add_argument("--unused", type=Path, nargs="+", metavar="FOLDER", help=UNUSED_HELP)
    clean.add_argument("--older-than", type=float, metavar="DAYS", help=OLDER_HELP)
    return root


UNUSED_HELP = "also artifacts that no finished run under these folders needs, unless used in the last 7 days"
INSTEAD = "--store <a store that you can write to>"
OLDER_HELP = "artifacts that no run has used for so many days; with --unused, this replaces its 7 days"


def main(arguments: list[str]) -> int:
    """Run a command and return the exit code: 0, 1 if `check` found damage, 2 after an error."""
    options = parser().parse_args(arguments)
    store = Store(options.store)
    commands: dict[str, Callable[[], list[str]]] = {
        "ls": lambda: ls(store, options.stage),
        "why": lambda: differences(store, *options.sides),
        "check": lambda: check(store),
        "gc": lambda: gc(store, options.delete, options.unused, options.older_than),
    }
    try:
        if options.command != "why" and not store.root.is_dir():
            raise UserError(f"there is no store in {store.root}; use --store <its folder>")
        lines = commands[options.command]()
    except (UserError, OSError) as error:
        line = str(error) if isinstance(error, UserError) else system_fault(error, str(store.root), instead=INSTEAD)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 1 if options.command == "check" and any(line.startswith("damaged: ") for line in lines) else 0
