"""Commands on a store: what it holds, why two artifacts differ, whether it is undamaged, what can be removed."""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabench.base import UserError
from lorabench.engine.failures import system_fault
from lorabench.engine.garbage import (
    DAY,
    KEY,
    MANIFEST,
    artifact_folders,
    garbage,
    is_free,
    read_manifest,
    remove,
    size_of,
)
from lorabench.engine.record import BROKEN, KEY_FILE, canonical, damage, read_record
from lorabench.engine.store import INTACT, Store

WIDTH = 60  # characters of the description of an artifact without a name


@dataclass(frozen=True)
class Listed:
    """An artifact as its key.json describes it; made: seconds since the epoch, size: bytes."""

    path: Path
    stage: str
    made: float
    size: int
    what: str

    @classmethod
    def of(cls, path: Path) -> "Listed":
        """Raises one of BROKEN where key.json is spoilt."""
        record = read_record(path)
        made = (path / KEY_FILE).stat().st_mtime
        what = record["name"] if "name" in record else canonical(record["parts"])[:WIDTH]  # written by an older version
        return cls(path, record["stage"], made, sum(record["files"].values()), what)


def ls(store: Store, stage: str | None) -> list[str]:
    """A line an artifact, by stage and then by age, and the total."""
    found, spoilt = [], 0
    for path in artifact_folders(store):
        if stage in (None, path.parent.name):
            try:
                found.append(Listed.of(path))
            except BROKEN:
                spoilt += 1
    found.sort(key=lambda each: (each.path.parent.name, each.made, each.path.name))
    lines = [
        f"{each.stage:<12} {each.path.name}  {bytes_of(each.size):>8}  {age(each.made):>4}  {each.what}"
        for each in found
    ]
    told = f"; {spoilt} damaged, type python -m lorabench.engine check" if spoilt else ""
    return [*lines, f"{len(found)} artifacts, {bytes_of(sum(each.size for each in found))}{told}"]


def check(store: Store) -> list[str]:
    """The damaged artifacts, every byte read; a run that needs one makes it anew."""
    lines, bare, folders = [], 0, list(artifact_folders(store))
    for path in folders:
        if files := damage(path):
            (store.root / INTACT / path.name).unlink(missing_ok=True)  # so that it is read again
            lines.append(f"damaged: {path.parent.name}/{path.name} ({', '.join(files)})")
            with suppress(*BROKEN):
                lines[-1] += f"; {Listed.of(path).what}"
        elif "sha256" not in read_record(path):
            bare += 1
    told = f"; {bare} of an older version have no checksums, only their sizes were compared" if bare else ""
    return [*lines, f"{len(folders)} artifacts read, {len(lines)} damaged{told}"]


def why(left: Path, right: Path) -> list[str]:
    """Return the differences between two artifacts' keys as lines `part: left -> right`.

    An input that differs is followed by its own differences, indented, if the store has both.
    """
    sides = [dict(flat(read_key(path))) for path in (left, right)]
    lines = []
    for name in sorted(set(sides[0]) | set(sides[1])):
        values = [side.get(name, "absent") for side in sides]
        if values[0] != values[1]:
            lines.append(f"{name}: {values[0]} -> {values[1]}")
            inputs = [input_at(path, value) for path, value in zip((left, right), values, strict=True)]
            if inputs[0] and inputs[1]:
                lines += [f"    {line}" for line in why(inputs[0], inputs[1])]
    return lines


def input_at(path: Path, value: Any) -> Path | None:
    """Return the folder of the artifact with this key in the store of `path`, or None if `value` is not such a key."""
    key = KEY.match(str(value))
    found = path.parent.parent.glob(f"*/{key[0]}/{KEY_FILE}") if key else ()
    return next((file.parent for file in found), None)


def why_runs(store: Store, left: Path, right: Path) -> list[str]:
    """The items whose keys differ between two run folders, and for the first of each stage the parts that do."""
    sides = [keys_of(run / MANIFEST) for run in (left, right)]
    lines = []
    for stage in dict.fromkeys([*sides[0], *sides[1]]):
        keys = [side.get(stage, {}) for side in sides]
        told = False
        for name in dict.fromkeys([*keys[0], *keys[1]]):
            one, other = (side.get(name) for side in keys)
            if one != other:
                lines.append(f"{stage} {name}: {one or 'absent'} -> {other or 'absent'}")
                paths = [store.root / stage / key for key in (one, other) if key]
                if not told and len(paths) == 2 and all((path / KEY_FILE).is_file() for path in paths):
                    lines += [f"    {line}" for line in why(*paths)]
                    told = True
    return lines


def keys_of(manifest: Path) -> dict[str, dict[str, str]]:
    """Return the keys of a run by stage and artifact name; a run of several rows has the row's label before the name.

    Raises:
        UserError: If the manifest has no keys.
    """
    said = read_manifest(manifest)
    try:
        found = {stage: dict(keys) for stage, keys in said.get("keys", {}).items()}
        for row in said.get("rows", []):
            for stage, keys in row["keys"].items():
                own = {f"{row['label']}: {name}": key for name, key in keys.items()}
                found.setdefault(stage, {}).update(own)
    except BROKEN as error:
        raise UserError(f"{manifest} names no keys; use a run folder of task=benchmark or task=compare") from error
    return found


def read_key(path: Path) -> dict[str, Any]:
    """Return stage, version, parameters and inputs of an artifact.

    Raises:
        UserError: If the folder is not an artifact.
    """
    try:
        record = read_record(path)
        parts = record["parts"]
        known = {key: value for key, value in parts.items() if key not in ("params", "inputs")}
        return {"stage": record["stage"], **known, **parts.get("params", {}), **parts.get("inputs", {})}
    except BROKEN as error:
        raise UserError(f"{path} is no artifact of a store; use the folder that holds a {KEY_FILE}") from error


def flat(value: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in items:
            yield from flat(child, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def resolve(store: Store, name: str) -> Path:
    """An artifact's or a run's folder, from its path, or from the beginning of a key, with or without the stage."""
    if any((Path(name) / file).is_file() for file in (KEY_FILE, MANIFEST)):
        return Path(name)
    stage, _, prefix = name.rpartition("/")
    found = [path for path in store.root.glob(f"{stage or '*'}/{prefix}*") if (path / KEY_FILE).is_file()]
    if len(found) != 1:
        said = "several artifacts begin" if found else "no artifact or run begins"
        raise UserError(f"{said} with {name} in {store.root}; run python -m lorabench.engine ls --store {store.root}")
    return found[0]


def bytes_of(count: float) -> str:
    """
    >>> bytes_of(999), bytes_of(1_234_567)
    ('999 B', '1.2 MB')
    """
    units = ("B", "kB", "MB", "GB", "TB")
    step = next((i for i, _ in enumerate(units) if count < 1000 ** (i + 1)), len(units) - 1)
    return f"{count / 1000**step:.{1 if step else 0}f} {units[step]}"


def age(since: float) -> str:
    """Minutes, hours or days."""
    seconds = max(time.time() - since, 0)
    for size, unit in ((DAY, "d"), (3600, "h")):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds / 60:.0f}m"


def gc(store: Store, delete: bool, outputs: Sequence[Path] | None, days: float | None) -> list[str]:
    """What can go, a line a folder and a line a kind of file; it goes with `delete`, unless a process works on it."""
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
    root = argparse.ArgumentParser(prog="python -m lorabench.engine", description=__doc__)
    commands = root.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument(
            "--store", type=Path, default=Path("outputs/store"), help="folder of the store (default: outputs/store)"
        )
        return added

    command("ls", "list the artifacts: stage, key, size, age, what it is").add_argument("stage", nargs="?")
    differ = command("why", "which parts of two artifacts' keys, or which items of two runs, differ")
    differ.add_argument("sides", nargs=2, metavar="folder|[stage/]key", help="the beginning of a key is enough")
    command("check", "read every byte and compare the checksums; damaged artifacts are made anew by the next run")
    clean = command("gc", "list what killed runs left behind; --delete removes it, never what is being made")
    clean.add_argument("--delete", action="store_true", help="remove it; without, it is only listed")
    clean.add_argument("--unused", type=Path, nargs="+", metavar="FOLDER", help=UNUSED_HELP)
    clean.add_argument("--older-than", type=float, metavar="DAYS", help=OLDER_HELP)
    return root


UNUSED_HELP = "also artifacts that no finished run under these folders is made of, unless used in the last 7 days"
INSTEAD = "--store <a store that you can write to>"
OLDER_HELP = "artifacts that no run has used for so many days; with --unused its 7 days"


def main(arguments: list[str]) -> int:
    """The exit code: 0, 1 where `check` found damage, 2 for a mistake, which is one line."""
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


def differences(store: Store, one: str, other: str) -> list[str]:
    left, right = resolve(store, one), resolve(store, other)
    runs = [(path / MANIFEST).is_file() for path in (left, right)]
    if runs[0] != runs[1]:
        raise UserError("two run folders or two artifacts are needed")
    lines = why_runs(store, left, right) if all(runs) else why(left, right)
    return lines or ["the keys are equal"]
