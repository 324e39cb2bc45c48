"""Which pairs share a subject or a style, and how they are resampled.

Pairs that share a subject or a style are not independent. If subjects are in several pairs, whole subjects are
resampled instead of pairs; the same holds for styles. If both are, subjects and styles are resampled together, and the
weight of a pair is the product of the counts of its subject and its style (the product bootstrap: Owen, "The pigeonhole
bootstrap", Annals of Applied Statistics 1, 2007; Owen and Eckles, 6, 2012). For a balanced grid with variance by
subject, by style and of the rest it estimates

    s^2_subject / subjects + s^2_style / styles + 3 s^2_rest / pairs,

so it is conservative if the rest dominates. A subject (style) that all pairs share is fixed: results hold for it only.

Tests use the two-way cluster-robust variance (Cameron, Gelbach and Miller, Journal of Business & Economic Statistics
29, 2011) and a t distribution with one degree of freedom less than there are subjects, or styles if they are fewer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import pandas as pd

RESAMPLES = 9999
SEED = 0

Codes = tuple[int, ...]  # cluster of each pair


@dataclass(frozen=True)
class Design:
    """The pairs of a mean.

    Args:
        contents: Number of each pair's content.
        styles: Number of each pair's style.
    """

    contents: Codes
    styles: Codes

    @classmethod
    def of(cls, pairs: pd.MultiIndex | pd.Index) -> Design:
        """Return the design of pairs indexed by content and style, among other levels."""
        return cls(*(tuple(pd.factorize(pairs.get_level_values(role))[0].tolist()) for role in ("content", "style")))

    @classmethod
    def independent(cls, pairs: int) -> Design:
        """Return the design of pairs that share nothing."""
        return cls(tuple(range(pairs)), tuple(range(pairs)))

    @property
    def pairs(self) -> int:
        """Return the number of pairs."""
        return len(self.contents)

    @property
    def shared(self) -> dict[str, Codes]:
        """Return the cluster of each pair by role, if there are several clusters and one has several pairs."""
        both = {"content": self.contents, "style": self.styles}
        return {role: codes for role, codes in both.items() if 1 < len(set(codes)) < len(codes)}

    @cached_property
    def clusters(self) -> tuple[Codes, ...]:
        """Return the clusterings that are resampled: one, or two whose counts are multiplied."""
        return tuple(self.shared.values()) or (tuple(range(self.pairs)),)

    @property
    def units(self) -> int:
        """Return the number of independent units: of the clustering with the fewest clusters."""
        return min(len(set(codes)) for codes in self.clusters)

    @property
    def is_independent(self) -> bool:
        """Return whether no two pairs share a subject or a style."""
        return not self.shared


@lru_cache(maxsize=16)
def counts(design: Design) -> np.ndarray:
    """Return the weight of each pair in each resample, [pairs, RESAMPLES]; no resample is empty."""
    rng = np.random.default_rng(SEED)
    times = drawn(design, rng)
    while (empty := times.sum(axis=0) == 0).any():  # a sparse grid may lack all pairs of the drawn names
        times[:, empty] = drawn(design, rng)[:, empty]
    return np.ascontiguousarray(times)


def drawn(design: Design, rng: np.random.Generator) -> np.ndarray:
    """Return the products of the counts of each pair's clusters, [pairs, RESAMPLES]."""
    times = np.ones((design.pairs, RESAMPLES))
    for codes in design.clusters:
        size = len(set(codes))
        times *= rng.multinomial(size, np.full(size, 1 / size), size=RESAMPLES).T[list(codes)]
    return times


def variance(off: np.ndarray, design: Design) -> np.ndarray:
    """Return the cluster-robust variance [...] of a mean.

    Args:
        off: Share of each pair in the deviation of the mean, [..., pairs]; they sum to zero.
        design: Of the pairs.
    """
    parts = [clustered(off, codes) for codes in design.clusters]
    if len(parts) == 1:
        return parts[0]
    whole = sum(parts) - clustered(off, tuple(range(design.pairs)))
    return np.maximum(whole, np.maximum(*parts))  # the difference may be too small, or negative


def clustered(off: np.ndarray, codes: Codes) -> np.ndarray:
    """Return the variance [...] of a sum over independent clusters."""
    size = len(set(codes))
    sums = np.stack([off[..., np.equal(codes, code)].sum(axis=-1) for code in range(size)], axis=-1)
    return size / (size - 1) * (sums**2).sum(axis=-1)
