"""The lists of rows that a study's config names."""

from collections.abc import Sequence

from lorabench.base import UserError
from lorabench.tasks.plan import FLOORS


def check_rows(key: str, names: Sequence[str], example: str, floors: str | None = None) -> None:
    """UserError for an empty list, or a row that it names twice.

    floors: what keeps the rows without a merge out of it, in words; None lets them in.
    """
    if not names:
        raise UserError(f"{key} is empty; type {key}={example}")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{key} names {twice} twice; name each once")
    if floors and (floor := next((name for name in names if name.partition(" ")[0] in FLOORS), None)):
        raise UserError(f"{key} names {floor}, which {floors}; leave it out")
