"""Held-out subjects and styles by name, for personalisation: never drawn while the base model or scorers are trained.

`mug_1` to `mug_4` are individuals of a known class. `halftone_1`, `halftone_2` are new settings of a known family;
`blueprint_1` and the like belong to families that were never shown.
"""

from __future__ import annotations

import zlib
from functools import cache

import numpy as np

from lorabench.base import UserError
from lorabench.data.microworld import factors
from lorabench.data.microworld.factors import CLASSES, FAMILIES, UNSEEN_FAMILIES, Style, Subject

VERSION = "1"

HELDOUT_SUBJECTS = [f"{c}_{i}" for c in CLASSES for i in range(1, 5)]
HELDOUT_STYLES = [f"{f}_{i}" for f in FAMILIES for i in range(1, 5 if f in UNSEEN_FAMILIES else 3)]

# The training samplers keep this far from every held-out thing, in units of content_distance and style_distance.
MARGIN = 0.06


def _rng(name: str) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(name.encode()), int(VERSION)])


def _lookup(name: str, known: list[str], kind: str) -> str:
    if name not in known:
        import difflib

        near = difflib.get_close_matches(name, known, 3) or known[:3]
        raise UserError(f"the microworld has no {kind} {name!r}; try one of {', '.join(near)}")
    return name.rsplit("_", 1)[0]


@cache
def subject(name: str) -> Subject:
    """The held-out individual of that name."""
    return factors.sample_subject(_rng(name), _lookup(name, HELDOUT_SUBJECTS, "subject"))


@cache
def style(name: str) -> Style:
    """The held-out style of that name."""
    return factors.sample_style(_rng(name), _lookup(name, HELDOUT_STYLES, "style"))


def sample_subject(rng: np.random.Generator, cls: str | None = None) -> Subject:
    """A random individual that is none of the held-out ones."""
    while True:
        draw = factors.sample_subject(rng, cls)
        rivals = (subject(f"{draw.cls}_{i}") for i in range(1, 5))
        if all(factors.content_distance(draw, r) > MARGIN for r in rivals):
            return draw


def sample_style(rng: np.random.Generator, family: str | None = None) -> Style:
    """A random style of a seen family that is none of the held-out ones."""
    while True:
        draw = factors.sample_style(rng, family)
        rivals = [style(n) for n in HELDOUT_STYLES if n.rsplit("_", 1)[0] == draw.family]
        if all(factors.style_distance(draw, r) > MARGIN for r in rivals):
            return draw
