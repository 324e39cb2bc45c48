"""Reference images, and the concepts that they show: subjects (role content) and styles."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image, ImageOps

Role = Literal["content", "style"]
ROLES: tuple[Role, Role] = ("content", "style")


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


def distinct(references: Iterable[Reference]) -> tuple[Reference, ...]:
    """Return each image once; a file with two names is one reference."""
    return tuple({reference.sha256: reference for reference in references}.values())


def square(image: Image.Image, size: int) -> Image.Image:
    """Crop the center square and resize it to `size`; an image of that size is returned unchanged."""
    if image.size == (size, size):
        return image
    return ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
