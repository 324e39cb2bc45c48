"""Relative URLs of files, for pages that can be moved together with their folder."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote


def link(path: Path, folder: Path | None) -> str | None:
    """Return a relative URL if the file exists in the page's folder or in one next to it, else None."""
    if folder is None or not path.is_file():
        return None
    path, folder = path.resolve(), folder.resolve()
    if not path.is_relative_to(folder.parent):
        return None
    return quoted(os.path.relpath(path, folder))


def quoted(path: str) -> str:
    """Quote a path as a URL; file names may contain # or a colon.

    >>> quoted("a b/c:#.png")
    './a%20b/c%3A%23.png'
    """
    return "./" + quote(path.replace(os.sep, "/"), safe="/+")
