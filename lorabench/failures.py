"""What a failed run leaves: an exit code, one line, and where the rest is to be read."""

from collections.abc import Iterator
from dataclasses import dataclass
from errno import EACCES, EDQUOT, ENOSPC, ENOTDIR, EPERM, EROFS

FULL = (ENOSPC, EDQUOT)
UNWRITABLE = (EACCES, ENOTDIR, EPERM, EROFS)
# Libraries of other languages pass the system's words on, but not its number.
WORDS = {"No space left on device": ENOSPC, "Disk quota exceeded": EDQUOT, "Read-only file system": EROFS}


@dataclass(frozen=True)
class Failed:
    """What a job of a sweep returns where it failed; log: the file with the whole story, where there is one."""

    code: int
    line: str
    log: str | None = None


def system_fault(error: BaseException, place: str) -> str | None:
    """The line on a full or read-only disk or a vanished file; None where an error has another cause.

    place: the folder that is written to, for errors that do not name their file.
    """
    for each in chain(error):
        number = each.errno if isinstance(each, OSError) else None
        if number not in (*FULL, *UNWRITABLE):
            number = next((number for words, number in WORDS.items() if words in str(each)), None)
        if number is not None:
            file = getattr(each, "filename2", None) or getattr(each, "filename", None)  # the second of a copy
            return unwritable(number, str(file or place))
        if place in str(each) and (isinstance(each, FileNotFoundError) or "no such file" in str(each)):
            return f"what was stored in {place} is no more; type the same command again to make it anew"
    return None


def unwritable(number: int, place: str) -> str:
    """A file or folder that cannot be made or written to, by the system's error number."""
    if number in FULL:
        return f"no space is left to write {place}; make some and type the same command again, what is finished is kept"
    reason = {EROFS: "Read-only file system", ENOTDIR: "Not a directory"}.get(number, "Permission denied")
    return f"cannot write to {place}: {reason}; type output=<a folder you can write to>"


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error, what caused it and so on."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
