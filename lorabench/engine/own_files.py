"""Files at paths that the user chose; only a file of lorabench is replaced there.

A file of lorabench has a mark: `lorabench.version` in the metadata of a .safetensors file, `lorabench` in a .json file,
and `Software: lorabench` in a .png file.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

from lorabench.base import UserError
from lorabench.engine.record import BROKEN

VERSION = "lorabench.version"  # key of the metadata
NAME = "lorabench"  # key of a .json file
PNG_NOTE = {"Software": NAME}
LONGEST_HEADER = 100_000_000  # bytes, as in the format's own reader


def check_replaceable(path: Path, instead: str) -> None:
    """Check that a file may be written to a path.

    Args:
        path: Path of the new file; a link counts as its target.
        instead: Words to type for another path.

    Raises:
        UserError: If a file is there that lorabench did not write.
    """
    if os.path.lexists(path) and not is_own(path):
        raise UserError(f"{path} was not written by lorabench and is left as it is; move it, or use {instead}")


def is_own(path: Path) -> bool:
    """Return whether a file has the mark of lorabench."""
    try:
        if path.suffix == ".safetensors":
            return VERSION in safetensors_metadata(path)
        if path.suffix == ".json":
            return NAME in json.loads(path.read_text(encoding="utf-8"))
        if path.suffix == ".png":
            from PIL import Image

            with Image.open(path) as image:
                return image.info.get("Software") == NAME
    except (*BROKEN, struct.error):
        return False
    return False


def safetensors_metadata(path: Path) -> dict[str, str]:
    """Return the metadata in the header of a .safetensors file, without importing torch."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(min(size, LONGEST_HEADER))).get("__metadata__") or {}
