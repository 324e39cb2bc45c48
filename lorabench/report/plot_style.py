"""The style of all figures: matplotlib's own defaults, not those of a user's `matplotlibrc`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def default_style() -> Iterator[None]:
    """Plot in matplotlib's default style within the block, or in a function that this decorates."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield
