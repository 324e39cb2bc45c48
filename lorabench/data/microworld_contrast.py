"""Contrastive pairs of the microworld, for CRAFT-LoRA's backbone.

For content C_i and style S_j, both from the development names, so that nothing of the benchmark is seen:

    content image   C_i itself in one pose, in a random style of the family of S_j
    style image     a random individual of the class of C_i in a random pose, in S_j itself

So one factor is exact and the other varies, as the publication's frequency bands intend. Both have
the caption "a mug in ink style", without identifiers.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from PIL import Image

from lorabench.base import UserError, seed_of
from lorabench.data import microworld as mw
from lorabench.data.concepts import Concept, Reference
from lorabench.data.microworld_pairs import reference, render

UNSEEN = set(mw.UNSEEN_FAMILIES)


def subjects(count: int) -> list[str]:
    """Return development subjects, of different classes first.

    Raises:
        UserError: If there are fewer.
    """
    return first(mw.DEVELOPMENT_SUBJECTS, count, "contents")


def styles(count: int) -> list[str]:
    """Return development styles of families that the base model knows, of different families first.

    Raises:
        UserError: If there are fewer.
    """
    return first([name for name in mw.DEVELOPMENT_STYLES if mw.kind_of(name) not in UNSEEN], count, "styles")


def first(names: list[str], count: int, key: str) -> list[str]:
    """Return `count` names, the first of every kind before the second.

    Raises:
        UserError: If there are fewer.
    """
    ordered = [name for turn in ("1", "2") for name in names if name.endswith(turn)]
    if count > len(ordered):
        raise UserError(f"method.backbone.{key}={count} must be at most {len(ordered)} in the microworld")
    return ordered[:count]


def true_pairs(contents: int, looks: int) -> Concept:
    """Return the content images of all pairs as `images` and the style images as `styled`."""
    pairs = [(subject, style) for subject in subjects(contents) for style in styles(looks)]
    return Concept(
        "contrastive pairs", "content", "",
        tuple(pair_image(each, "content") for each in pairs), (),
        styled=tuple(pair_image(each, "style") for each in pairs),
    )  # fmt: skip


def pair_image(pair: tuple[str, str], fixed: str) -> Reference:
    """Return the image of a subject in a style, of a set in which the role `fixed` is the same."""
    subject, style = map(mw.kind_of, pair)
    draw = draw_content if fixed == "content" else draw_style
    return reference(subject, f"a {subject} in {style} style", partial(draw, *pair), f"{fixed} of {' '.join(pair)}", 0)


def draw_content(subject: str, style: str) -> Image.Image:
    """Render the subject in its own pose, in a random style of the style's family."""
    look = mw.sample_style(np.random.default_rng(seed_of("contrast style", subject, style)), mw.kind_of(style), True)
    return render(mw.subject(subject), look, seed_of("contrast", subject))


def draw_style(subject: str, style: str) -> Image.Image:
    """Render a random individual of the subject's class in the style."""
    rng = np.random.default_rng(seed_of("contrast subject", subject, style))
    individual = mw.sample_subject(rng, mw.kind_of(subject), True)
    return render(individual, mw.style(style), seed_of("contrast pose", subject, style))


def references(contents: int, looks: int) -> Concept:
    """Return photographs of the subjects as `images` and one image of each style as `styled`."""
    photos = tuple(
        reference(mw.kind_of(name), f"a {mw.kind_of(name)}", partial(draw_photo, name), f"contrast {name}", 0)
        for name in subjects(contents)
    )
    pictures = []
    for index, name in enumerate(styles(looks)):
        shown = mw.kind_of(subjects(contents)[index % contents])
        prompt = f"a {shown} in {mw.kind_of(name)} style"
        pictures.append(reference(shown, prompt, partial(draw_style, f"{shown}_", name), f"contrast {name}", index))
    return Concept("contrastive references", "content", "", photos, (), styled=tuple(pictures))


def draw_photo(subject: str) -> Image.Image:
    """Photograph a subject in the pose of its contrastive images."""
    return render(mw.subject(subject), None, seed_of("contrast", subject))
