"""The hub's client without its warnings: an unreachable hub is told in one line of ours, not in one a retry."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_hub() -> Iterator[None]:
    """The client logs errors alone while this lasts; the bar of a download is still drawn."""
    from huggingface_hub.utils import logging

    known = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(known)
