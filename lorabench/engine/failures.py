"""Failures of a run: its exit code, and one line for an error of the file system."""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from errno import EACCES, EDQUOT, EFBIG, ENAMETOOLONG, ENOSPC, ENOTDIR, EPERM, EROFS
from pathlib import Path

from lorabench.base import UserError
from lorabench.engine.record import is_whole

FULL = (ENOSPC, EDQUOT, EFBIG)
FORBIDDEN = (EACCES, EPERM, EROFS)
# Libraries in other languages keep the text of a system error, but not its number.
WORDS = {os.strerror(number): number for number in (*FULL, EROFS)}
ELSEWHERE = "output=<a folder you can write to>, and store= if you gave one"
LITTLE = 1 << 20  # bytes; a disk with less free space is full


@dataclass(frozen=True)
class Failed:
    """Result of a failed job of a sweep.

    Args:
        code: Exit code.
        line: Message.
        log: File with the complete output, if there is one.
    """

    code: int
    line: str
    log: str | None = None


class Incomplete(Exception):
    """Error of a run in which some rows failed and all others finished. The first line has the number of failures."""


def system_fault(error: BaseException, place: str, draft: Path | None = None, instead: str = ELSEWHERE) -> str | None:
    """Return the message for a full, read-only or deleted folder, or None if the error has another cause.

    Args:
        error: The error that was raised.
        place: The folder that was written to, for errors that do not name their file.
        draft: The folder that was being filled, for libraries whose errors name neither the file nor the cause.
        instead: The setting to recommend if the folder cannot be written to.
    """
    if draft is not None and not draft.is_dir():
        return gone(place)
    if isinstance(error, UserError):  # its author may have reported a deleted file as a broken one
        unread = error.__context__
        return gone(place) if isinstance(unread, FileNotFoundError) and has_lost(place, str(unread)) else None
    for each in chain(error):
        number = each.errno if isinstance(each, OSError) else None
        if number not in (*FULL, *FORBIDDEN, ENOTDIR, ENAMETOOLONG):
            number = next((number for words, number in WORDS.items() if words in str(each)), None)
        if number is not None:
            file = getattr(each, "filename2", None) or getattr(each, "filename", None)  # a copy has two files
            if file and number in FORBIDDEN and not is_readable(str(file)):
                return f"cannot read {file}: {os.strerror(number)}; make it readable, or use another file"
            return unwritable(number, str(file or place), instead)
        if (isinstance(each, FileNotFoundError) or "no such file" in str(each)) and has_lost(place, str(each)):
            return gone(place)
    nameless = getattr(error, "filename", None) is None
    return unwritable(ENOSPC, place) if draft and nameless and shutil.disk_usage(draft).free < LITTLE else None


def unwritable(number: int, place: str, instead: str = ELSEWHERE) -> str:
    """Return the message for a file or folder that cannot be created or written to, by the system's error number."""
    if number == ENAMETOOLONG:
        return f"the name of {place} is too long for the file system; use a shorter one (name=, output=)"
    if number in FULL:
        return (
            f"no space is left to write {place}; free some and run the same command again; finished artifacts are kept"
        )
    return f"cannot write to {place}: {os.strerror(number)}; use {instead}"


def is_readable(file: str) -> bool:
    """Return whether a file can be read. If we cannot see the file, return whether we can read its folder."""
    while not os.path.exists(file) and file != os.path.dirname(file):
        file = os.path.dirname(file)
    return os.access(file, os.R_OK | os.X_OK if os.path.isdir(file) else os.R_OK)


def has_lost(place: str, text: str) -> bool:
    """Return whether the artifact or draft of the file that an error names was deleted from the store.

    If the artifact is complete, the missing file is a bug of lorabench and not a deletion.

    Args:
        place: Root of the store.
        text: Message of the error.
    """
    if (named := re.search(rf"{re.escape(place)}(?![\w.-])(?:/([^/'\"\s]+)/([^/'\"\s]+))?", text)) is None:
        return False
    if named[1] is None:
        return True
    folder = Path(place, named[1], named[2])
    return not (folder.is_dir() if named[1].startswith(".") else is_whole(folder))


def gone(place: str) -> str:
    """Return the message for stored files that were deleted during a run."""
    return f"stored files in {place} were deleted; run the same command again to recompute them"


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, its cause, the cause of that one, and so on."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
