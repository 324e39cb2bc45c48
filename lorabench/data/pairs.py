"""What is personalised and merged: references, concepts (a subject or a style) and pairs of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from PIL import Image, ImageOps

from lorabench.errors import UserError

JOIN = "+"  # between names of what is drawn together
Role = Literal["content", "style"]
ROLES: tuple[Role, Role] = ("content", "style")


@dataclass(frozen=True)
class Prompts:
    """The prompts of DreamBooth-LoRA with ZipLoRA's identifiers; both identifiers are configurable.

    contexts: the scenes to draw pairs in, by name or one by one (lorabench/data/contexts.py).
    """

    content_token: str = "sks"
    style_token: str = "szn"
    contexts: str | Sequence[str] = "none"

    def content(self, word: str) -> str:
        return f"a {self.content_token} {word}"

    def style(self, word: str) -> str:
        return f"a {word} in {self.style_token} style"

    def merged(self, words: Sequence[str]) -> str:
        """Each subject by its identifier and word; the style identifier is the same for all styles and comes once.

        >>> Prompts().merged(["dog"]), Prompts().merged(["dog", "cat"])
        ('a sks dog in szn style', 'a sks dog and a sks cat in szn style')
        """
        return f"{listed(self.content(word) for word in words)} in {self.style_token} style"


@dataclass(frozen=True)
class Reference:
    """One image of a concept.

    word: the object it shows, without an article ("dog").
    prompt: the caption it is trained with ("a sks dog", "a house in szn style").
    sha256: identity of the image, what the store's keys are made of.
    load: draws or decodes it (upright RGB, any size); picklable, so that a worker does it.
    """

    word: str
    prompt: str
    sha256: str
    load: Callable[[], Image.Image]

    def image(self, size: int) -> Image.Image:
        """RGB [size, size]: centre crop to a square, then one antialiased resize."""
        return square(self.load(), size)


@dataclass(frozen=True)
class Concept:
    """A subject (role content) or a style.

    word: the class word ("dog") or the style phrase ("oil painting style").
    images: what the LoRA is trained on.
    references: what generated images are compared with; other images than the trained ones where there are some.
    factors: the true factors in a world that has them, else None.
    live: whether it is a living subject, which may wear a hat.
    contexts: of its own to be drawn in, for prompts.contexts=auto.
    """

    name: str
    role: Role
    word: str
    images: tuple[Reference, ...]
    references: tuple[Reference, ...]
    factors: Any = None
    live: bool = False
    contexts: tuple[str, ...] = ()

    def identity(self) -> dict[str, Any]:
        """What tells this concept from any other, for keys: words and image hashes, no path."""
        return {
            "role": self.role,
            "word": self.word,
            "images": [[image.prompt, image.sha256] for image in self.images],
        }


class Scene(NamedTuple):
    """What a pair is drawn in: the prompt with its identifiers, and the same in plain words, for CLIP-T."""

    prompt: str
    text: str


@dataclass(frozen=True)
class Pair:
    """A subject to be drawn in a style; or several subjects together, or in a blend of several styles.

    prompt: with all identifiers, what a merge learns with and every row draws ("a sks dog in szn style").
    text: the same in plain words, for CLIP-T ("a dog in oil painting style").
    couples: of several, each content with each style as a pair of its own; empty for a single pair.
    scenes: what is drawn instead of the prompt ("a sks dog in the jungle in szn style"); merges know the prompt alone.
    """

    contents: tuple[Concept, ...]
    styles: tuple[Concept, ...]
    prompt: str
    text: str
    couples: tuple[Pair, ...] = ()
    scenes: tuple[Scene, ...] = ()

    @property
    def drawn(self) -> tuple[Scene, ...]:
        """The scenes; without any, the prompt alone."""
        return self.scenes or (Scene(self.prompt, self.text),)

    def shots(self, images: int) -> list[Scene]:
        """The scene of every image, in their order: each scene `images` times."""
        return [scene for scene in self.drawn for _ in range(images)]

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """Contents, then styles: the order of the adapters."""
        return self.contents + self.styles

    @property
    def roles(self) -> tuple[Role, ...]:
        return tuple(concept.role for concept in self.concepts)

    @property
    def content_name(self) -> str:
        return JOIN.join(concept.name for concept in self.contents)

    @property
    def style_name(self) -> str:
        return JOIN.join(concept.name for concept in self.styles)

    @property
    def names(self) -> dict[Role, str]:
        return {"content": self.content_name, "style": self.style_name}

    @property
    def name(self) -> str:
        return f"{self.content_name}{JOIN}{self.style_name}"

    def of(self, role: Role) -> tuple[Concept, ...]:
        return self.contents if role == "content" else self.styles

    @property
    def is_single(self) -> bool:
        """One subject in one style: what the truth of a microworld knows how to draw and to name."""
        return len(self.concepts) == 2


def all_pairs(subjects: list[tuple[Concept, ...]], styles: list[tuple[Concept, ...]], prompts: Prompts) -> list[Pair]:
    """Every group of subjects in every group of styles, subjects first."""
    return [pair(contents, looks, prompts) for contents in subjects for looks in styles]


def pair(contents: tuple[Concept, ...], styles: tuple[Concept, ...], prompts: Prompts) -> Pair:
    """Contents and styles with the prompts that name each of them; UserError where a prompt cannot tell two apart."""
    words = [content.word for content in contents]
    if twice := next((word for word in words if words.count(word) > 1), None):
        names = JOIN.join(content.name for content in contents)
        raise UserError(
            f"{names} has two subjects called {twice!r}, which no prompt tells apart; name one of each class"
        )
    text = f"{listed(f'a {word}' for word in words)} in {listed(style.word for style in styles)}"
    singles = [((content,), (style,)) for content in contents for style in styles]
    couples = tuple(pair(*single, prompts) for single in singles) if len(singles) > 1 else ()
    return Pair(contents, styles, prompts.merged(words), text, couples)


def listed(items: Iterable[str]) -> str:
    """As a sentence lists them.

    >>> listed(["a mug", "a cat", "a dog"])
    'a mug, a cat and a dog'
    """
    *head, last = items
    return f"{', '.join(head)} and {last}" if head else last


def square(image: Image.Image, size: int) -> Image.Image:
    """Centre-crop to a square and resize to `size`; an image of that size passes unchanged."""
    if image.size == (size, size):
        return image
    return ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
