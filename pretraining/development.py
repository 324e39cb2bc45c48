"""Choose the development names: `python -m pretraining development` prints the tables of microworld/development.py.

The bank's images 0 to 135,999 were used for training before these names existed, so the names must differ from the
images. Candidate k of a name is a function of (name, k). The first candidate is chosen that is

- at least MARGIN away from every held-out name and every earlier development name,
- at least BANK_MARGIN away from every image of the bank before DEVELOPMENT_FROM.

The bank is too dense for MARGIN: only one random subject in 70 and no style in a thousand keeps it. One subject in 10
and one style in 3 keep BANK_MARGIN, so the names are not limited to rare combinations. Images from DEVELOPMENT_FROM on
keep MARGIN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import TypeVar

from lorabench.data.microworld import factors, registry
from lorabench.data.microworld.factors import CLASSES, FAMILIES, Style, Subject
from pretraining.bank import DEVELOPMENT_FROM, factors_of

T = TypeVar("T", Subject, Style)
NAMES_PER_KIND = 2
BANK_MARGIN = {"subject": 0.05, "style": 0.03}


def choose(
    kinds: Sequence[str],
    sample: Callable,
    distance: Callable[[T, T], float],
    heldout: Sequence[T],
    pictures: Sequence[T],
    bank_margin: float,
    kind_of: Callable[[T], str],
) -> dict[str, int]:
    """Return the accepted candidate of each name.

    Args:
        kinds: Classes or families.
        sample: `factors.sample_subject` or `factors.sample_style`.
        distance: Distance of two subjects or styles.
        heldout: The held-out subjects or styles.
        pictures: The subjects or styles of the bank.
        bank_margin: Minimum distance to those of the bank.
        kind_of: Function that returns the class of a subject or the family of a style.
    """
    chosen: dict[str, int] = {}
    for kind in kinds:
        named = [thing for thing in heldout if kind_of(thing) == kind]
        seen = [thing for thing in pictures if kind_of(thing) == kind]
        for name in (f"{kind}_dev{i + 1}" for i in range(NAMES_PER_KIND)):
            candidates = ((draw, sample(registry._rng(name, draw), kind)) for draw in count())
            chosen[name], thing = next(
                (draw, each)
                for draw, each in candidates
                if all(distance(each, other) > registry.MARGIN for other in named)
                and all(distance(each, other) > bank_margin for other in seen)
            )
            named.append(thing)
    return chosen


def print_tables() -> None:
    """Print the tables of microworld/development.py."""
    subjects, styles = [], []
    for i in range(DEVELOPMENT_FROM):
        subject, style, _, _ = factors_of(i)
        subjects.append(subject)
        styles += [style] if style else []
    tables = {
        "SUBJECT_DRAWS": choose(
            CLASSES, factors.sample_subject, factors.content_distance,
            [registry.subject(name) for name in registry.HELDOUT_SUBJECTS], subjects, BANK_MARGIN["subject"],
            lambda subject: subject.cls,
        ),
        "STYLE_DRAWS": choose(
            FAMILIES, factors.sample_style, factors.style_distance,
            [registry.style(name) for name in registry.HELDOUT_STYLES], styles, BANK_MARGIN["style"],
            lambda style: style.family,
        ),
    }  # fmt: skip
    for title, table in tables.items():
        print(title, table)
