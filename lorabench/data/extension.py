"""Semantic extension (CRAFT-LoRA, arXiv 2602.18936, appendix B.3): prompts beyond what the adapters were trained on.

    use           kind   prompt                       trained: "a sks mug" and "szn style" (ink)
    new_content   I      "a cat in szn style"         new content, trained style
    new_style     II     "a sks mug in halftone style"   trained content, new style
    new_both      III    "a cat in halftone style"    both new

Both words are marked, as in the publication. In the microworld the new words are a class and a family that the base
model knows, drawn by the name of the pair; elsewhere they are the publication's "bicycle" and "sketch style".
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from lorabench.base import UserError, seed_of
from lorabench.data.concepts import Concept
from lorabench.data.pairs import Pair
from lorabench.data.scenes import Scene

Extension = Literal["new_content", "new_style", "new_both"]
EXTENSIONS: tuple[Extension, ...] = ("new_content", "new_style", "new_both")
CONTENT, STYLE = "bicycle", "sketch style"


def extended(pair: Pair, kind: Extension) -> Pair:
    """Return a pair with the prompt of an extension; its references, of the trained concepts, stay.

    Raises:
        UserError: If the pair has several subjects or styles.
    """
    if not pair.is_single:
        raise UserError(f"uses=[{kind}] needs one subject in one style, not {pair.name}; use uses=[joint]")
    [content], [style] = pair.contents, pair.styles
    thing, look = other_class(content), other_family(style)
    new_thing, new_look = kind != "new_style", kind != "new_content"
    named, plain = (thing, thing) if new_thing else (pair.alone.content, content.word)
    styled, described = (look, look) if new_look else (pair.alone.style, style.word)
    scene = Scene(
        f"a {named} in {styled}", f"a {plain} in {described}", f"a {named}", f"a {plain} in {styled}", f"a {plain}",
        content=named, style=styled,
    )  # fmt: skip
    return replace(
        pair,
        contents=(asked(content, cls=thing) if new_thing else content,),
        styles=(asked(style, family=look.removesuffix(" style")) if new_look else style,),
        alone=scene,
        scenes=(),
    )


def asked(concept: Concept, **factors: str) -> Concept:
    """Return a concept that is recognized in an image by other words; its references are unchanged."""
    return concept if concept.factors is None else replace(concept, factors=replace(concept.factors, **factors))


def other_class(content: Concept) -> str:
    """Return the class word of another content."""
    if content.factors is None:
        return CONTENT
    from lorabench.data import microworld as mw

    return drawn([each for each in mw.CLASSES if each != content.word], content)


def other_family(style: Concept) -> str:
    """Return the phrase of another style that the base model knows."""
    if style.factors is None:
        return STYLE
    from lorabench.data import microworld as mw

    return f"{drawn([each for each in mw.SEEN_FAMILIES if f'{each} style' != style.word], style)} style"


def drawn(words: list[str], concept: Concept) -> str:
    """Draw one of the words, seeded by the concept."""
    return str(np.random.default_rng(seed_of("extension", concept.name)).choice(words))
