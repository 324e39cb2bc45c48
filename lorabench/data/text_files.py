"""Text files that people write: manifests, captions and lists of prompts."""

from __future__ import annotations

from pathlib import Path

from lorabench.base import UserError


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, with or without a byte order mark, with "\\n" at line ends.

    Raises:
        UserError: If the file is in another encoding, with the line of the first byte that is not UTF-8, or has bytes
            of value 0, as text in UTF-16 and binary files do.
    """
    raw = path.read_bytes()
    wrong = raw.find(b"\0")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wrong = error.start if wrong < 0 else min(wrong, error.start)
    if wrong >= 0:
        line = raw.count(b"\n", 0, wrong) + 1
        raise UserError(f"{path}:{line}: must be text in UTF-8; save the file in that encoding")
    return text.replace("\r\n", "\n").replace("\r", "\n")
