"""Pairs of the microworld by rule: crossed, matched, or typed one by one. Only names are read here.

Crossed pairs each subject with each style. Matched pairs use each subject and each style once (selection.matched);
their order goes round the classes and families.
"""

from __future__ import annotations

from itertools import product

from lorabench.base import UserError
from lorabench.config.choices import choose
from lorabench.config.dataset_schemas import MicroworldSpec, StylisedSpec
from lorabench.data import microworld as mw
from lorabench.data.pairs import JOIN
from lorabench.data.selection import Names, groups, matched

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
    return matched(contents, styles, spec.count, spec.pairs_seed, lambda group: mw.kind_of(group[0]))


def typed(pair: str) -> tuple[Names, Names]:
    """Split "subject/style"; either may be a group "a+b".

    >>> typed("mug_1+cat_1/ink_1")
    (('mug_1', 'cat_1'), ('ink_1',))
    """
    contents, _, styles = str(pair).partition(MEETS)
    if not contents or not styles or MEETS in styles:
        raise UserError(f"dataset.pairs={pair} must be a subject and a style; use dataset.pairs=[mug_1/ink_1]")
    return tuple(contents.split(JOIN)), tuple(styles.split(JOIN))
