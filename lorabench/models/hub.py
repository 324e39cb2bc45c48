"""Repositories of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lorabench.base import UserError

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def fetch(repository: str, patterns: Sequence[str]) -> Path:
    """Return the local folder of a repository, from the hub's cache or downloaded.

    Args:
        repository: Hub id.
        patterns: Files to download.

    Raises:
        UserError: If it cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    try:
        with quiet_hub():
            return Path(snapshot_download(repository, allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(
            f"{repository} is not a path here and cannot be downloaded from the hub ({reason}); download it on a "
            "machine with a connection and give its folder"
        ) from None


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Silence the warnings of the hub's client, but not its progress bar. Our own message replaces its retries."""
    from huggingface_hub.utils import logging

    known = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(known)
