"""The predictions that a sampling step combines, and the adapter scales it uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lorabench.data.pairs import Wording

Scale = Callable[[str, float], tuple[float, ...]]  # of a layer's name and progress: a strength an adapter


@dataclass(frozen=True)
class Branch:
    """One of the predictions that make a guided one: rows of their own in every sampling step.

    weight: of its prediction in the sum; the weights of all branches sum to 1.
    scale: of each adapter in these rows, beside the method's own.
    words: the wording of the prompt; None is the empty one.
    """

    weight: float
    scale: tuple[float, ...]
    words: Wording | None
