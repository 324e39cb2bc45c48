"""Compare the keys of two artifacts or of two runs."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lorabench.base import UserError
from lorabench.engine.garbage import KEY, MANIFEST, read_manifest
from lorabench.engine.record import BROKEN, KEY_FILE, read_record
from lorabench.engine.store import Store


def differences(store: Store, one: str, other: str) -> list[str]:
    """Return lines on the differences between two artifacts or two runs.

    Args:
        store: Store of the artifacts.
        one: Folder, or beginning of a key, of an artifact or a run.
        other: The same for the other side.

    Raises:
        UserError: If a side does not exist, or if one is a run and the other is an artifact.
    """
    left, right = resolve(store, one), resolve(store, other)
    runs = [(path / MANIFEST).is_file() for path in (left, right)]
    if runs[0] != runs[1]:
        raise UserError("two run folders or two artifacts are needed")
    lines = why_runs(store, left, right) if all(runs) else why(left, right)
    return lines or ["the keys are equal"]


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
    """Return the artifacts whose keys differ between two runs, and for the first of each stage its differences."""
    sides = [keys_of(run / MANIFEST) for run in (left, right)]
    lines = []
    for stage in dict.fromkeys([*sides[0], *sides[1]]):
        keys = [side.get(stage, {}) for side in sides]
        is_explained = False
        for name in dict.fromkeys([*keys[0], *keys[1]]):
            one, other = (side.get(name) for side in keys)
            if one != other:
                lines.append(f"{stage} {name}: {one or 'absent'} -> {other or 'absent'}")
                paths = [store.root / stage / key for key in (one, other) if key]
                if not is_explained and len(paths) == 2 and all((path / KEY_FILE).is_file() for path in paths):
                    lines += [f"    {line}" for line in why(*paths)]
                    is_explained = True
    return lines


def keys_of(manifest: Path) -> dict[str, dict[str, str]]:
    """Return the keys of a run by stage and artifact name; a run of several rows has the row's label before the name.

    Raises:
        UserError: If the manifest has no keys.
    """
    content = read_manifest(manifest)
    try:
        found = {stage: dict(keys) for stage, keys in content.get("keys", {}).items()}
        for row in content.get("rows", []):
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
        raise UserError(f"{path} is not an artifact of a store; use a folder with a {KEY_FILE}") from error


def flat(value: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    """Yield the leaves of nested dicts and lists with their names, such as "params.rank"."""
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in items:
            yield from flat(child, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def resolve(store: Store, name: str) -> Path:
    """Return the folder of an artifact or a run.

    Args:
        store: The store.
        name: The folder, or the beginning of an artifact's key, with or without its stage.

    Raises:
        UserError: If there is no such artifact or run, or more than one.
    """
    if any((Path(name) / file).is_file() for file in (KEY_FILE, MANIFEST)):
        return Path(name)
    stage, _, prefix = name.rpartition("/")
    found = [path for path in store.root.glob(f"{stage or '*'}/{prefix}*") if (path / KEY_FILE).is_file()]
    if len(found) != 1:
        begin = "several artifacts begin" if found else "no artifact or run begins"
        raise UserError(f"{begin} with {name} in {store.root}; run python -m lorabench.engine ls --store {store.root}")
    return found[0]
