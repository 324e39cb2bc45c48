"""Inputs of trainings and merges: reference images, concepts (a subject or a style) and pairs of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import gcd, lcm
from typing import Any, Literal, NamedTuple

from PIL import Image, ImageOps

from lorabench.base import UserError
from lorabench.data.markers import parse

NO_SCENE = "a {}"
JOIN = "+"  # between names of concepts in one image
Role = Literal["content", "style"]
Wording = Literal["prompt", "subject", "styled", "plain"]
ROLES: tuple[Role, Role] = ("content", "style")


@dataclass(frozen=True)
class Prompts:
    """The prompts of DreamBooth-LoRA with ZipLoRA's identifiers; both identifiers are configurable.

    Args:
        content_token: Identifier of subjects.
        style_token: Identifier of styles.
        contexts: Scenes of the pairs: the name of a list, or the scenes themselves (lorabench/data/contexts.py).
    """

    content_token: str = "sks"
    style_token: str = "szn"
    contexts: str | Sequence[str] = "none"

    def content(self, word: str) -> str:
        """Return the prompt of a subject with this class word."""
        return f"a {self.content_token} {word}"

    def style(self, word: str) -> str:
        """Return the prompt of an image of the style that shows an object."""
        return f"a {word} in {self.style_token} style"

    def scene(self, words: Sequence[str], styles: Sequence[str], context: str = NO_SCENE) -> Scene:
        """Return the scene of subjects with these class words in a context, and of styles with these phrases.

        Each subject has its identifier. All styles share one identifier, which occurs once.

        >>> Prompts().scene(["dog"], ["oil painting style"], "a {} in the snow").prompt
        'a sks dog in the snow in szn style'
        >>> Prompts().scene(["dog", "cat"], ["crayon style"])[1:4]
        ('a dog and a cat in crayon style', 'a sks dog and a sks cat', 'a dog and a cat in szn style')
        """
        marked = parse(context).spans
        context = parse(context).text
        before, _, after = context.partition("{}")
        named = listed(f"{before}{self.content_token} {word}" for word in words) + after
        plain = listed(f"{before}{word}" for word in words) + after
        look = f" in {self.style_token} style"
        text, place = f"{plain} in {listed(styles)}", "" if context == NO_SCENE else context
        subject = listed(f"{self.content_token} {word}" for word in words)
        spans = {"content": subject, "style": look.removeprefix(" in ")} | {
            role: words.replace("{}", subject) for role, words in marked.items()
        }
        return Scene(named + look, text, named, plain + look, plain, place, **spans)


@dataclass(frozen=True)
class Reference:
    """One image of a concept.

    Args:
        word: The object in the image, without an article ("dog").
        prompt: Its caption in training ("a sks dog", "a house in szn style").
        sha256: Identity of the image; keys of the store contain it.
        load: Function that renders or decodes the image (upright RGB, any size); picklable for workers.
        weight: Frequency of the image in training, relative to the other images of its concept.
    """

    word: str
    prompt: str
    sha256: str
    load: Callable[[], Image.Image]
    weight: int = 1

    def identity(self) -> list[Any]:
        """Return the properties that distinguish this image from any other in training."""
        return [self.prompt, self.sha256, *([self.weight] if self.weight != 1 else [])]

    def image(self, size: int) -> Image.Image:
        """Return the RGB image [size, size]: a center crop, then one antialiased resize."""
        return square(self.load(), size)


@dataclass(frozen=True)
class Concept:
    """A subject (role content) or a style.

    Args:
        name: Name in the dataset.
        role: "content" or "style".
        word: The class word ("dog") or the style phrase ("oil painting style").
        images: Training images of the LoRA.
        references: Images for comparison with generated images; other images than `images` if there are some.
        factors: The true factors in a world that has them, else None.
        live: Whether it is a living subject, which may wear a hat.
        contexts: Scenes of its own, for prompts.contexts=auto.
        styled: `images` after styling, for a training on aligned images.
        token: Its identifier in the prompts; "" if unknown, as for a user's own LoRA.
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
        """Return the properties that distinguish this concept in keys: words and image hashes, no path."""
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
    content, style: the words of the prompt about each, which its markers enclose ("sks dog", "szn style"); "" if none.
    """

    prompt: str
    text: str
    subject: str = ""
    styled: str = ""
    plain: str = ""
    context: str = ""
    content: str = ""
    style: str = ""

    def marked(self, role: Role) -> str:
        """Return the words of the prompt about a role; "" if no marker says which."""
        return self.content if role == "content" else self.style

    @classmethod
    def of(cls, prompt: str) -> Scene:
        """Return the scene of a prompt of the user, which may have markers.

        Raises:
            UserError: If its markers are not valid.
        """
        text, spans = parse(prompt)
        return cls(text, text, **spans)

    def worded(self, wording: Wording) -> str:
        """Return the prompt in a wording, or `prompt` if the wording is unknown."""
        return getattr(self, wording) or self.prompt


def worded(prompts: Sequence[str | Scene], wording: Wording) -> list[str]:
    """Return scenes in a wording; strings are unchanged."""
    return [each if isinstance(each, str) else each.worded(wording) for each in prompts]


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


def distinct(references: Iterable[Reference]) -> tuple[Reference, ...]:
    """Return each image once; a file with two names is one reference."""
    return tuple({reference.sha256: reference for reference in references}.values())


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


def listed(items: Iterable[str]) -> str:
    """Join items as in a sentence.

    >>> listed(["a mug", "a cat", "a dog"])
    'a mug, a cat and a dog'
    """
    *head, last = items
    return f"{', '.join(head)} and {last}" if head else last


def square(image: Image.Image, size: int) -> Image.Image:
    """Crop the center square and resize it to `size`; an image of that size is returned unchanged."""
    if image.size == (size, size):
        return image
    return ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
