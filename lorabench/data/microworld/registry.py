"""Subjects and styles by name, for personalization. The base model and the scorers are not trained on any of them.

Held out, for evaluation: `mug_1` to `mug_4` are individuals of a known class. `halftone_1` and `halftone_2` are new
settings of a known family; `blueprint_1` to `blueprint_4` belong to a family that the base model has never seen.

For development (tuning recipes, training LoRA.rar's network): `mug_dev1`, `mug_dev2`, `halftone_dev1`, ... No result is
reported on them.
"""

from __future__ import annotations

import zlib
from functools import cache

import numpy as np

from lorabench.base import UserError
from lorabench.data.microworld import factors
from lorabench.data.microworld.development import STYLE_DRAWS, SUBJECT_DRAWS
from lorabench.data.microworld.factors import CLASSES, FAMILIES, UNSEEN_FAMILIES, Style, Subject

VERSION = "1"

HELDOUT_SUBJECTS = [f"{c}_{i}" for c in CLASSES for i in range(1, 5)]
HELDOUT_STYLES = [f"{f}_{i}" for f in FAMILIES for i in range(1, 5 if f in UNSEEN_FAMILIES else 3)]

DEVELOPMENT_SUBJECTS = list(SUBJECT_DRAWS)
DEVELOPMENT_STYLES = list(STYLE_DRAWS)

# Minimum distance of sampled subjects and styles to named ones, in units of content_distance and style_distance.
MARGIN = 0.06


def _rng(name: str, draw: int | None = None) -> np.random.Generator:
    """Return the generator of a held-out name, or that of candidate `draw` of a development name."""
    return np.random.default_rng([zlib.crc32(name.encode()), int(VERSION), *([] if draw is None else [draw])])


def kind_of(name: str) -> str:
    """Return the class or family in a name: "mug" of "mug_dev1"; "photo", which is neither, stays "photo"."""
    return name.rsplit("_", 1)[0]


def _kind(name: str, known: list[str], role: str) -> str:
    """Return the class or family in a name. Raises UserError if the name is not in `known`."""
    if name not in known:
        import difflib

        near = difflib.get_close_matches(name, known, 3) or known[:3]
        raise UserError(f"the microworld has no {role} {name!r}; use one of {', '.join(near)}")
    return kind_of(name)


@cache
def subject(name: str) -> Subject:
    """Return the held-out or development subject of that name. Raises UserError if there is none."""
    cls = _kind(name, HELDOUT_SUBJECTS + DEVELOPMENT_SUBJECTS, "subject")
    return factors.sample_subject(_rng(name, SUBJECT_DRAWS.get(name)), cls)


@cache
def style(name: str) -> Style:
    """Return the held-out or development style of that name. Raises UserError if there is none."""
    family = _kind(name, HELDOUT_STYLES + DEVELOPMENT_STYLES, "style")
    return factors.sample_style(_rng(name, STYLE_DRAWS.get(name)), family)


def sample_subject(rng: np.random.Generator, cls: str | None = None, development: bool = False) -> Subject:
    """Sample an individual that is at least MARGIN away from the held-out subjects.

    Args:
        cls: Its class; None samples one.
        development: Also keep the margin to the development subjects. False reproduces images that were rendered
            before development subjects existed.
    """
    while True:
        draw = factors.sample_subject(rng, cls)
        rivals = _rivals(draw.cls, development)
        if all(factors.content_distance(draw, subject(name)) > MARGIN for name in rivals):
            return draw


def sample_style(rng: np.random.Generator, family: str | None = None, development: bool = False) -> Style:
    """Sample a style that is at least MARGIN away from the held-out styles.

    Args:
        family: Its family; None samples one that the base model may see.
        development: As in `sample_subject`.
    """
    while True:
        draw = factors.sample_style(rng, family)
        if all(factors.style_distance(draw, style(name)) > MARGIN for name in _rivals(draw.family, development)):
            return draw


@cache
def _rivals(kind: str, development: bool) -> list[str]:
    """Return the named subjects or styles of a class or family, to which samples must keep a margin."""
    names = HELDOUT_SUBJECTS + HELDOUT_STYLES
    if development:
        names = names + DEVELOPMENT_SUBJECTS + DEVELOPMENT_STYLES
    return [name for name in names if kind_of(name) == kind]
