"""Classifier-free guidance with the adapter scales of the merge."""

from dataclasses import dataclass

from lorabench.sampling.rule import Sampling


@dataclass(frozen=True, kw_only=True)
class Plain(Sampling):
    """No change over the steps, and no branches."""
