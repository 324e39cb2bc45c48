"""Pairs of subjects and styles, the items of a benchmark."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd, lcm

from lorabench.base import UserError
from lorabench.data.concepts import Concept, Role
from lorabench.data.scenes import Prompts, Scene

JOIN = "+"  # between names of concepts in one image


@dataclass(frozen=True)
class Pair:
    """A subject to be generated in a style; or several subjects together, or in a blend of several styles.

    Args:
        contents, styles: The concepts.
        alone: The pair without a place; merges learn with it.
        couples: Each content with each style as a pair, if there are several; empty for a single pair.
        scenes: Scenes to generate instead of `alone`; merges do not depend on them.
        content_scenes, style_scenes: Scenes for uses of only the subject or only the style; empty: `scenes`.
        sources: Pairs whose images content and style are trained on, if these are two; empty: this pair.
    """

    contents: tuple[Concept, ...]
    styles: tuple[Concept, ...]
    alone: Scene
    couples: tuple[Pair, ...] = ()
    scenes: tuple[Scene, ...] = ()
    content_scenes: tuple[Scene, ...] = ()
    style_scenes: tuple[Scene, ...] = ()
    sources: tuple[Pair, ...] = ()

    @property
    def prompt(self) -> str:
        """Return the prompt without a place."""
        return self.alone.prompt

    @property
    def text(self) -> str:
        """Return the prompt without a place and in plain words."""
        return self.alone.text

    @property
    def drawn(self) -> tuple[Scene, ...]:
        """Return the scenes, or the pair without a place if there are none."""
        return self.scenes or (self.alone,)

    def shots(self, images: int) -> list[Scene]:
        """Return the scene of every image in order: each scene `images` times."""
        return [scene for scene in self.drawn for _ in range(images)]

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """Return contents, then styles, which is the order of the adapters."""
        return self.contents + self.styles

    @property
    def roles(self) -> tuple[Role, ...]:
        """Return the role of each concept."""
        return tuple(concept.role for concept in self.concepts)

    @property
    def content_name(self) -> str:
        """Return the joined names of the contents."""
        return JOIN.join(concept.name for concept in self.contents)

    @property
    def style_name(self) -> str:
        """Return the joined names of the styles."""
        return JOIN.join(concept.name for concept in self.styles)

    @property
    def names(self) -> dict[Role, str]:
        """Return the joined names by role."""
        return {"content": self.content_name, "style": self.style_name}

    @property
    def name(self) -> str:
        """Return the name of the pair: names of contents and styles."""
        return f"{self.content_name}{JOIN}{self.style_name}"

    def of(self, role: Role) -> tuple[Concept, ...]:
        """Return the concepts of a role."""
        return self.contents if role == "content" else self.styles

    @property
    def is_single(self) -> bool:
        """Return whether this is one subject in one style, which a microworld can render and name."""
        return len(self.concepts) == 2


def pair(contents: tuple[Concept, ...], styles: tuple[Concept, ...], prompts: Prompts) -> Pair:
    """Return a pair of contents and styles with its prompts.

    Raises:
        UserError: If two subjects have the same class word, so that a prompt cannot distinguish them.
    """
    words = [content.word for content in contents]
    if twice := next((word for word in words if words.count(word) > 1), None):
        names = JOIN.join(content.name for content in contents)
        raise UserError(
            f"{names} has two subjects called {twice!r}, which no prompt can distinguish; name one of each class"
        )
    singles = [((content,), (style,)) for content in contents for style in styles]
    couples = tuple(pair(*single, prompts) for single in singles) if len(singles) > 1 else ()
    return Pair(contents, styles, prompts.scene(words, [style.word for style in styles]), couples)


def joined(pair: Pair) -> Concept:
    """Return all concepts of a pair as one concept, in which training draws each of them equally often."""
    total = lcm(*(concept.weight for concept in pair.concepts))
    images = tuple(
        replace(image, weight=image.weight * (total // concept.weight))
        for concept in pair.concepts
        for image in concept.images
    )
    common = gcd(*(image.weight for image in images))
    images = tuple(replace(image, weight=image.weight // common) for image in images)
    return Concept(pair.name, "content", pair.text, images, ())
