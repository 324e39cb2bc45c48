"""What a failed run leaves: an exit code, one line, and where the rest is to be read."""

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
# Libraries of other languages pass the system's words on, but not its number.
WORDS = {os.strerror(number): number for number in (*FULL, EROFS)}
ELSEWHERE = "output=<a folder you can write to>, and store= where you gave one"
LITTLE = 1 << 20  # bytes: a disk with less is full


@dataclass(frozen=True)
class Failed:
    """What a job of a sweep returns where it failed; log: the file with the whole story, where there is one."""

    code: int
    line: str
    log: str | None = None


class Incomplete(Exception):
    """Of a run that did all it could; the first line says how much failed, the others what."""


def system_fault(error: BaseException, place: str, draft: Path | None = None, instead: str = ELSEWHERE) -> str | None:
    """The line on a full, forbidden or vanished disk; None where an error has another cause or says it all itself.

    place: what is written to, for errors that do not name their file.  draft: the folder that was being filled, which
    tells what a library keeps to itself.  instead: what to type where nothing can be written.
    """
    if draft is not None and not draft.is_dir():
        return gone(place)
    if isinstance(error, UserError):  # which may take a file that is no more for a broken one
        unread = error.__context__
        return gone(place) if isinstance(unread, FileNotFoundError) and has_lost(place, str(unread)) else None
    for each in chain(error):
        number = each.errno if isinstance(each, OSError) else None
        if number not in (*FULL, *FORBIDDEN, ENOTDIR, ENAMETOOLONG):
            number = next((number for words, number in WORDS.items() if words in str(each)), None)
        if number is not None:
            file = getattr(each, "filename2", None) or getattr(each, "filename", None)  # the second of a copy
            if file and number in FORBIDDEN and not is_readable(str(file)):
                return f"cannot read {file}: {os.strerror(number)}; make it readable, or name another one"
            return unwritable(number, str(file or place), instead)
        if (isinstance(each, FileNotFoundError) or "no such file" in str(each)) and has_lost(place, str(each)):
            return gone(place)
    nameless = getattr(error, "filename", None) is None
    return unwritable(ENOSPC, place) if draft and nameless and shutil.disk_usage(draft).free < LITTLE else None


def unwritable(number: int, place: str, instead: str = ELSEWHERE) -> str:
    """A file or folder that cannot be made or written to, by the system's error number."""
    if number == ENAMETOOLONG:
        return f"the name of {place} is too long for the file system; use a shorter one (name=, output=)"
    if number in FULL:
        return (
            f"no space is left to write {place}; free some and run the same command again; finished artifacts are kept"
        )
    return f"cannot write to {place}: {os.strerror(number)}; use {instead}"


def is_readable(file: str) -> bool:
    """Whether the file can be read, or if we see none the folder that it would be in."""
    while not os.path.exists(file) and file != os.path.dirname(file):
        file = os.path.dirname(file)
    return os.access(file, os.R_OK | os.X_OK if os.path.isdir(file) else os.R_OK)


def has_lost(place: str, text: str) -> bool:
    """Whether a store lacks the artifact or draft of the file that a text names.

    Where it is there, that it has no such file is a fault of ours and no deletion.
    """
    if (named := re.search(rf"{re.escape(place)}(?![\w.-])(?:/([^/'\"\s]+)/([^/'\"\s]+))?", text)) is None:
        return False
    if named[1] is None:
        return True
    folder = Path(place, named[1], named[2])
    return not (folder.is_dir() if named[1].startswith(".") else is_whole(folder))


def gone(place: str) -> str:
    return f"what was stored in {place} is no more; use the same command again to make it anew"


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error, what caused it and so on."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
