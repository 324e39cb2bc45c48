"""Messages for names that do not exist."""

import difflib
from collections.abc import Iterable

from lorabench.base import UserError


def choose(key: str, value: str, options: Iterable[str]) -> None:
    """Check that the value of a key is one of the options.

    Raises:
        UserError: If it is not.
    """
    if value not in (options := list(options)):
        raise UserError(unknown(key, value, options))


def unknown(key: str, value: str, options: Iterable[str]) -> str:
    """Return the message for a name that does not exist, with the nearest option and all options.

    >>> unknown("method", "duolra", ["direct", "duolora"])
    'method=duolra is unknown, did you mean duolora? Use method=<direct|duolora>'
    """
    options = list(options)
    if not options:
        return f"{key}={value} is unknown; there are no options for {key}, leave it out"
    near = difflib.get_close_matches(value, options, n=1)
    hint = f", did you mean {near[0]}?" if near else ";"
    return f"{key}={value} is unknown{hint} {'Use' if near else 'use'} {key}=<{'|'.join(options)}>"
