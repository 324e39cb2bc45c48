"""What is personalised and merged: references, concepts (a subject or a style) and pairs of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import gcd, lcm
from typing import Any, Literal, NamedTuple

from PIL import Image, ImageOps

from lorabench.base import UserError

NO_SCENE = "a {}"
JOIN = "+"  # between names of what is drawn together
Role = Literal["content", "style"]
Wording = Literal["prompt", "subject", "styled", "plain"]
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

    def scene(self, words: Sequence[str], styles: Sequence[str], context: str = NO_SCENE) -> Scene:
        """Subjects of these class words in a context, and styles of these phrases.

        Each subject has its identifier; that of the styles is the same for all and comes once.

        >>> Prompts().scene(["dog"], ["oil painting style"], "a {} in the snow").prompt
        'a sks dog in the snow in szn style'
        >>> Prompts().scene(["dog", "cat"], ["crayon style"])[1:4]
        ('a dog and a cat in crayon style', 'a sks dog and a sks cat', 'a dog and a cat in szn style')
        """
        before, _, after = context.partition("{}")
        named = listed(f"{before}{self.content_token} {word}" for word in words) + after
        plain = listed(f"{before}{word}" for word in words) + after
        look = f" in {self.style_token} style"
        text, place = f"{plain} in {listed(styles)}", "" if context == NO_SCENE else context
        return Scene(named + look, text, named, plain + look, plain, place)


@dataclass(frozen=True)
class Reference:
    """One image of a concept.

    word: the object it shows, without an article ("dog").
    prompt: the caption it is trained with ("a sks dog", "a house in szn style").
    sha256: identity of the image, what the store's keys are made of.
    load: draws or decodes it (upright RGB, any size); picklable, so that a worker does it.
    weight: how often training draws it, relative to the other images of its concept.
    """

    word: str
    prompt: str
    sha256: str
    load: Callable[[], Image.Image]
    weight: int = 1

    def identity(self) -> list[Any]:
        """Return what distinguishes this image from any other in training."""
        return [self.prompt, self.sha256, *([self.weight] if self.weight != 1 else [])]

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
    styled: the same pictures after styling, for a training on aligned pictures.
    token: its identifier in the prompts; "" where that is not known, as of a user's own LoRA.
    """

    name: str
    role: Role
    word: str
    images: tuple[Reference, ...]
    references: tuple[Reference, ...]
    factors: Any = None
    live: bool = False
    contexts: tuple[str, ...] = ()
    styled: tuple[Reference, ...] = ()
    token: str = ""

    @property
    def weight(self) -> int:
        """Return the sum of the weights of its images; their number, if all are drawn alike."""
        return sum(image.weight for image in self.images)

    def identity(self) -> dict[str, Any]:
        """What tells this concept from any other, for keys: words and image hashes, no path."""
        known = {"images": self.images, **({"styled": self.styled} if self.styled else {})}
        shown = {kind: [each.identity() for each in images] for kind, images in known.items()}
        return {"role": self.role, "word": self.word, **shown}


class Scene(NamedTuple):
    """What a pair is drawn in, in several wordings.

    prompt: with all identifiers, what every row draws ("a sks dog in the snow in szn style").
    text: in plain words, for CLIP-T ("a dog in the snow in oil painting style").
    subject: without the style ("a sks dog in the snow").
    styled: the subject by its class word alone ("a dog in the snow in szn style").
    plain: neither identifier nor style ("a dog in the snow").
    context: the scene for any subject ("a {} in the snow").
    The three before it are for methods that draw with them; "" where they are not known, as of a user's own prompt.
    """

    prompt: str
    text: str
    subject: str = ""
    styled: str = ""
    plain: str = ""
    context: str = ""

    def worded(self, wording: Wording) -> str:
        """The prompt in a wording, as it stands where that is not known."""
        return getattr(self, wording) or self.prompt


def worded(prompts: Sequence[str | Scene], wording: Wording) -> list[str]:
    """Scenes in a wording; a string says the same in all."""
    return [each if isinstance(each, str) else each.worded(wording) for each in prompts]


@dataclass(frozen=True)
class Pair:
    """A subject to be drawn in a style; or several subjects together, or in a blend of several styles.

    alone: the pair in no particular place, what a merge learns with.
    couples: of several, each content with each style as a pair of its own; empty for a single pair.
    scenes: what is drawn instead; merges do not know of them.
    content_scenes, style_scenes: what is drawn for uses of the subject or the style by itself; empty: as `scenes`.
    """

    contents: tuple[Concept, ...]
    styles: tuple[Concept, ...]
    alone: Scene
    couples: tuple[Pair, ...] = ()
    scenes: tuple[Scene, ...] = ()
    content_scenes: tuple[Scene, ...] = ()
    style_scenes: tuple[Scene, ...] = ()

    @property
    def prompt(self) -> str:
        return self.alone.prompt

    @property
    def text(self) -> str:
        return self.alone.text

    @property
    def drawn(self) -> tuple[Scene, ...]:
        """The scenes; without any, the pair alone."""
        return self.scenes or (self.alone,)

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


def pair(contents: tuple[Concept, ...], styles: tuple[Concept, ...], prompts: Prompts) -> Pair:
    """Contents and styles with the prompts that name each of them; UserError where a prompt cannot tell two apart."""
    words = [content.word for content in contents]
    if twice := next((word for word in words if words.count(word) > 1), None):
        names = JOIN.join(content.name for content in contents)
        raise UserError(
            f"{names} has two subjects called {twice!r}, which no prompt tells apart; name one of each class"
        )
    singles = [((content,), (style,)) for content in contents for style in styles]
    couples = tuple(pair(*single, prompts) for single in singles) if len(singles) > 1 else ()
    return Pair(contents, styles, prompts.scene(words, [style.word for style in styles]), couples)


def distinct(references: Iterable[Reference]) -> tuple[Reference, ...]:
    """Return each image once: a file that is there under two names is one reference."""
    return tuple({reference.sha256: reference for reference in references}.values())


def joined(pair: Pair) -> Concept:
    """Return all concepts of a pair as one, from which training draws as often as from any other."""
    total = lcm(*(concept.weight for concept in pair.concepts))
    images = tuple(
        replace(image, weight=image.weight * (total // concept.weight))
        for concept in pair.concepts
        for image in concept.images
    )
    common = gcd(*(image.weight for image in images))
    images = tuple(replace(image, weight=image.weight // common) for image in images)
    return Concept(pair.name, "content", pair.text, images, ())


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
