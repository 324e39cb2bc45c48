"""Pairs of the microworld by rule: crossed, matched, or typed one by one. Only names are read here.

Crossed pairs each subject with each style. Matched pairs use each subject and each style once, so that the pairs are
independent observations: subjects and styles are put in a seeded order that goes round their classes and families, and
the k-th subject meets the k-th style. A larger count therefore contains the pairs of a smaller one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product, zip_longest

from lorabench.base import UserError, seed_of
from lorabench.config.choices import choose
from lorabench.config.dataset_schemas import MicroworldSpec, StylisedSpec
from lorabench.data import microworld as mw
from lorabench.data.pairs import JOIN
from lorabench.data.selection import Names, groups

SUBJECTS = {"all": mw.HELDOUT_SUBJECTS, "development": mw.DEVELOPMENT_SUBJECTS}
STYLES = {"all": mw.HELDOUT_STYLES, "development": mw.DEVELOPMENT_STYLES}
MEETS = "/"  # between the subjects and the styles of a typed pair


def select_world(spec: MicroworldSpec | StylisedSpec) -> list[tuple[Names, Names]]:
    """Return the subjects and styles of every pair.

    Raises:
        UserError: If `dataset.pairs` is not valid, or matched pairs need more names than there are.
    """
    if not isinstance(spec.pairs, str):
        return [typed(each) for each in spec.pairs]
    choose("dataset.pairs", spec.pairs, ("crossed", "matched"))
    contents = groups("subjects", spec.contents or spec.subjects, SUBJECTS, together=spec.contents is not None)
    styles = groups("styles", spec.styles, STYLES)
    if spec.pairs == "crossed":
        return list(product(contents, styles))
    if spec.count > (most := min(len(contents), len(styles))):
        raise UserError(
            f"dataset.count={spec.count} must be at most {most}, because matched pairs use each name once; "
            f"use dataset.count={most}, or dataset.subjects=all dataset.styles=all"
        )
    ordered = (in_turn(names, spec.pairs_seed) for names in (contents, styles))
    return list(zip(*ordered, strict=False))[: spec.count]


def typed(pair: str) -> tuple[Names, Names]:
    """Split "subject/style"; either may be a group "a+b".

    >>> typed("mug_1+cat_1/ink_1")
    (('mug_1', 'cat_1'), ('ink_1',))
    """
    contents, _, styles = str(pair).partition(MEETS)
    if not contents or not styles or MEETS in styles:
        raise UserError(f"dataset.pairs={pair} must be a subject and a style; use dataset.pairs=[mug_1/ink_1]")
    return tuple(contents.split(JOIN)), tuple(styles.split(JOIN))


def in_turn(names: Sequence[Names], seed: int) -> list[Names]:
    """Order names at random, one of each class or family per round."""
    kinds: dict[str, list[Names]] = {}
    for group in sorted(names, key=lambda group: seed_of("matched", *group, seed)):
        kinds.setdefault(group[0].rsplit("_", 1)[0], []).append(group)
    rounds = zip_longest(*kinds.values())
    return [
        group
        for number, each in enumerate(rounds)
        for group in sorted((g for g in each if g), key=lambda group: seed_of("round", number, *group, seed))
    ]
