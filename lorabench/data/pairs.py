"""What is personalised and merged: references, concepts (a subject or a style) and pairs of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image, ImageOps

Role = Literal["content", "style"]


@dataclass(frozen=True)
class Prompts:
    """The prompts of DreamBooth-LoRA with ZipLoRA's identifiers; both identifiers are configurable."""

    content_token: str = "sks"
    style_token: str = "szn"

    def content(self, word: str) -> str:
        return f"a {self.content_token} {word}"

    def style(self, word: str) -> str:
        return f"a {word} in {self.style_token} style"

    def merged(self, word: str) -> str:
        return f"a {self.content_token} {word} in {self.style_token} style"


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
    """

    name: str
    role: Role
    word: str
    images: tuple[Reference, ...]
    references: tuple[Reference, ...]
    factors: Any = None

    def identity(self) -> dict[str, Any]:
        """What tells this concept from any other, for keys: words and image hashes, no path."""
        return {
            "role": self.role,
            "word": self.word,
            "images": [[image.prompt, image.sha256] for image in self.images],
        }


@dataclass(frozen=True)
class Pair:
    """A subject to be drawn in a style.

    prompt: with both identifiers, what every row generates from ("a sks dog in szn style").
    text: the same in plain words, for CLIP-T ("a dog in oil painting style").
    """

    content: Concept
    style: Concept
    prompt: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.content.name}+{self.style.name}"


def all_pairs(subjects: list[Concept], styles: list[Concept], prompts: Prompts) -> list[Pair]:
    """Every subject in every style, subjects first."""
    return [
        Pair(subject, style, prompts.merged(subject.word), f"a {subject.word} in {style.word}")
        for subject in subjects
        for style in styles
    ]


def square(image: Image.Image, size: int) -> Image.Image:
    """Centre-crop to a square and resize to `size`; an image of that size passes unchanged."""
    if image.size == (size, size):
        return image
    return ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
