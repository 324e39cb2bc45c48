"""Reader of a W&B run's offline file: protocol buffers in LevelDB's log format."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK, HEADER = 32768, 7  # bytes; a record's header is a checksum, its length and its type
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4
MAGIC = b":W&B"
Record: Any = getattr(wandb_internal_pb2, "Record")  # noqa: B009, made when the module is loaded


def records(path: Path) -> list[Any]:
    """Return all records of the run in order."""
    content, found, parts = path.read_bytes(), [], b""
    assert content[:4] == MAGIC
    at = HEADER  # the file has a header of the same length
    while at + HEADER <= len(content):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + HEADER])
        part = content[at + HEADER : at + HEADER + length]
        parts = part if kind in (WHOLE, FIRST) else parts + part
        if kind in (WHOLE, LAST):
            found.append(Record.FromString(parts))
        at += HEADER + length
    return found


class OfflineRun:
    """Return the data that `wandb sync` would upload from a folder offline-run-<time>-<id>."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        [file] = folder.glob("run-*.wandb")
        self.summary: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.files: dict[str, dict[str, Path]] = {}  # logged table -> path within it -> local file
        self.exit_code: int | None = None
        for record in records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.id, self.name, self.group = record.run.run_id, record.run.display_name, record.run.run_group
                self.config |= items(record.run.config.update)
            elif kind == "config":
                self.config |= items(record.config.update)
            elif kind == "summary":
                self.summary |= items(record.summary.update)
            elif kind == "history":
                self.history.append(items(record.history.item))
            elif kind == "artifact":
                name = record.artifact.name.removeprefix(f"run-{self.id}-")
                self.files[name] = {each.path: Path(each.local_path) for each in record.artifact.manifest.contents}
            elif kind == "exit":
                self.exit_code = record.exit.exit_code

    def table(self, key: str) -> dict[str, Any]:
        """Return a logged table with columns and data; images in it have their `path` in `files`."""
        return json.loads(self.files[key][f"{key}.table.json"].read_text())


def items(pairs: Any) -> dict[str, Any]:
    return {pair.key or "/".join(pair.nested_key): json.loads(pair.value_json) for pair in pairs}
