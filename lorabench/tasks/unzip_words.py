"""The words that task=unzip needs of an image, and suggestions for those that are left out.

    content.prompt="a sks cat" style.prompt="watercolor painting"

    full       "a sks cat in watercolor painting style"
    content    "a sks cat"
    style      "a cat in watercolor painting style"

Suggestions are the class of `a photo of a <class>` and the style of `an image in <style> style` with the highest cosine
to the image in the space of a CLIP scorer. They are printed, and used if `words=suggest`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import yaml

from lorabench.base import PACKAGE, UserError
from lorabench.data import microworld
from lorabench.data.scenes import Scene
from lorabench.data.stylised import ThreePrompts

if TYPE_CHECKING:
    from PIL import Image

    from lorabench.scoring.clip import Clip

WORDS = PACKAGE / "data" / "words.yaml"
SHOWN = 3  # suggestions that are printed
TEMPLATES = {"content": "a photo of a {}", "style": "an image in {} style"}
WORLD_TEMPLATES = {"content": "a {}", "style": "a thing in {} style"}


@dataclass(frozen=True)
class Words:
    """The words for an image.

    Args:
        content: Prompt with the identifier, "a sks cat".
        token: The identifier.
        style: Description of the style, "watercolor painting".
    """

    content: str
    token: str
    style: str

    @property
    def plain(self) -> str:
        """Return the content prompt without the identifier, "a cat"."""
        return " ".join(word for word in self.content.split() if word != self.token)

    @property
    def subject(self) -> str:
        """Return the class of the content, "cat"."""
        words = self.plain.split()
        return " ".join(words[1:] if words[0].lower() in ("a", "an", "the") and len(words) > 1 else words)

    def in_style(self, text: str) -> str:
        """Return a text with the style, "a dog in watercolor painting style"."""
        return f"{text} in {self.style}{'' if self.style.endswith('style') else ' style'}"

    @property
    def prompts(self) -> ThreePrompts:
        return ThreePrompts(self.in_style(self.content), self.content, self.in_style(self.plain))

    def scene(self, place: str = "") -> Scene:
        """Return the content in the style, in a place, with the prompts of each adapter."""
        named, plain = (" ".join(filter(None, [text, place])) for text in (self.content, self.plain))
        return Scene(self.in_style(named), self.in_style(plain), named, self.in_style(plain), plain)

    def check(self) -> None:
        """Check the words, and warn if the style names the subject.

        Raises:
            UserError: If the content prompt has no identifier or no class.
        """
        if self.token not in self.content.split():
            raise UserError(
                f"content.prompt={self.content!r} must contain the identifier {self.token}; use "
                f"content.prompt='a {self.token} cat', or prompts.content_token=<your identifier>"
            )
        if not self.subject or self.subject.lower() in ("a", "an", "the"):
            raise UserError(
                f"content.prompt={self.content!r} must name a class; use content.prompt='a {self.token} cat'"
            )
        if shared := set(self.subject.lower().split()) & set(self.style.lower().split()):
            print(
                f"style.prompt={self.style!r} names the subject ({min(shared)}), so that the style LoRA may learn it; "
                "describe the style only",
                file=sys.stderr,
            )


def lists(world: bool) -> dict[str, list[str]]:
    """Return the classes and styles to choose from, of the microworld or of photographs."""
    if world:
        return {"content": list(microworld.CLASSES), "style": list(microworld.FAMILIES)}
    found = yaml.safe_load(WORDS.read_text())
    return {"content": found["classes"], "style": found["styles"]}


def suggestions(clip: Clip, images: Sequence[Image.Image], world: bool) -> dict[str, list[tuple[str, float]]]:
    """Return the most similar classes ("content") and styles ("style") of images with their cosines, best first."""
    import numpy as np

    templates = WORLD_TEMPLATES if world else TEMPLATES
    embedded = clip.embed([np.asarray(image) for image in images])["content"]
    found = {}
    for role, words in lists(world).items():
        cosines = (embedded @ clip.embed_text([templates[role].format(word) for word in words]).T).mean(0)
        order = cosines.argsort(descending=True)[:SHOWN]
        found[role] = [(words[k], float(cosines[k])) for k in order]
    return found


def shown(found: Sequence[tuple[str, float]]) -> str:
    """Return suggestions as text, "cat (0.31), dog (0.27)"."""
    return ", ".join(f"{word} ({cosine:.2f})" for word, cosine in found)
