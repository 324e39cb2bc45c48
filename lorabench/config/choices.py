"""One-line errors for names that do not exist."""

import difflib
from collections.abc import Iterable

from lorabench.base import UserError


def choose(key: str, value: str, options: Iterable[str]) -> None:
    """UserError unless the value of a key is one of the options."""
    if value not in (options := list(options)):
        raise UserError(unknown(key, value, options))


def unknown(key: str, value: str, options: Iterable[str]) -> str:
    """One line on a name that does not exist: the nearest one, and all of them.

    >>> unknown("method", "duolra", ["direct", "duolora"])
    'method=duolra is unknown, did you mean duolora? Use method=<direct|duolora>'
    """
    options = list(options)
    if not options:
        return f"{key}={value} is unknown; there is no {key} to choose, leave it out"
    near = difflib.get_close_matches(value, options, n=1)
    hint = f", did you mean {near[0]}?" if near else ";"
    return f"{key}={value} is unknown{hint} {'Use' if near else 'use'} {key}=<{'|'.join(options)}>"
