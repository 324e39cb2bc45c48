"""Pairs with images of the subject in the style only, as in UnZipLoRA (arXiv 2412.04465).

    full prompt      "a sks mug in ink style"   shown by the images
    content prompt   "a sks mug"                caption of the same images as images of the subject
    style prompt     "a mug in ink style"       caption of the same images as images of the style

Both concepts of such a pair have the same images, each with its own caption. References are other images: photographs
of the subject, and other subjects in the style.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from lorabench.base import UserError
from lorabench.data.concepts import Concept
from lorabench.data.pairs import Pair
from lorabench.data.pairs import pair as make_pair
from lorabench.data.scenes import Prompts


class ThreePrompts(NamedTuple):
    """The prompts of a stylized image: of all it shows, of its subject, and of its style."""

    full: str
    content: str
    style: str


def is_stylised(pair: Pair) -> bool:
    """Return True if one subject and one style are known from the same images."""
    if not pair.is_single:
        return False
    content, style = ([image.sha256 for image in concept.images] for concept in pair.concepts)
    return content == style


def three_prompts(pair: Pair) -> ThreePrompts:
    """Return the prompts of a pair that is known from stylized images."""
    return ThreePrompts(pair.alone.prompt, pair.alone.subject, pair.alone.styled)


def stylised(pair: Pair) -> Concept:
    """Return subject and style as one concept: the images of the pair under the full prompt.

    Raises:
        UserError: If the subject and the style have images of their own.
    """
    if not is_stylised(pair):
        raise UserError(
            f"{pair.name} must be one subject in one style that are known from the same images; "
            "use dataset=microworld_stylised"
        )
    images = tuple(replace(image, prompt=pair.prompt) for image in pair.contents[0].images)
    return Concept(pair.name, "content", pair.text, images, ())


def crosses(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the subject of each stylized image in the style of the next one, whose LoRAs are those of the images.

    Raises:
        UserError: If there are no two stylized images.
    """
    if len(pairs) < 2 or not all(is_stylised(each) for each in pairs):
        raise UserError(
            "uses=[cross] takes the content of one stylized image and the style of another; "
            "use dataset=microworld_stylised dataset.count=2"
        )
    found = []
    for one, other in zip(pairs, [*pairs[1:], pairs[0]], strict=True):
        contents, styles = one.contents, other.styles
        prompts = Prompts(contents[0].token, styles[0].token)
        found.append(replace(make_pair(contents, styles, prompts), sources=(one, other)))
    return found
