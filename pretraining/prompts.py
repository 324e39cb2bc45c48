"""The prompts of `python -m pretraining evaluate`, and the factors that each names.

192 photographs name color, mark, class and scene. 208 drawings name mark, class, hue and family, and color if the
family keeps a subject's colors. The combination of a drawing occurs in no image before DEVELOPMENT_FROM, on which the
model was trained; photographs have too few combinations for that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lorabench.base import seed_of
from lorabench.data import microworld as mw
from lorabench.data.microworld.captions import PLACE
from lorabench.data.microworld.colors import NAMED, hue_name
from lorabench.data.microworld.factors import MARKS
from pretraining import bank

COLORED = ("watercolor", "crayon", "pixel", "glass", "clay")  # families that keep a subject's colors
PHOTOS_PER_CLASS, DRAWINGS_PER_FAMILY = 16, 16
MARKED = MARKS[1:]  # without "plain", which captions do not name
HUES = tuple(dict.fromkeys(hue_name(hue) for hue in np.linspace(0, 1, 200)))


@dataclass(frozen=True)
class Asked:
    """The factors that a prompt names; "" for others."""

    cls: str
    mark: str
    color: str
    family: str
    hue: str
    scene: str

    @property
    def prompt(self) -> str:
        """Return the text of the prompt."""
        thing = " ".join(word for word in ("a", self.color, self.mark, self.cls) if word)
        if self.scene:
            return f"a photo of {thing} {PLACE[self.scene]}"
        return f"{thing} in {self.hue} {self.family} style"

    @property
    def combination(self) -> tuple[str, ...]:
        """Return the factors of a drawing."""
        return self.cls, self.mark, self.color, self.hue, self.family


def combination(subject: mw.Subject, style: mw.Style) -> tuple[str, ...]:
    """Return the combination of a drawing, as in `Asked`."""
    color = subject.body.name if style.family in COLORED else ""
    return subject.cls, subject.mark, color, hue_name(style.hue), style.family


def choose(seen: Iterable[tuple[str, ...]]) -> list[Asked]:
    """Return the prompts: photographs, then drawings with unseen combinations."""
    rng, seen = np.random.default_rng(seed_of("evaluation prompts")), set(seen)

    def one(words: Iterable[str]) -> str:
        return str(rng.choice(list(words)))

    asked = [
        Asked(cls, one(MARKED), one(NAMED), "", "", one(mw.SCENES))
        for cls in mw.CLASSES
        for _ in range(PHOTOS_PER_CLASS)
    ]
    for family in mw.SEEN_FAMILIES:
        drawings: list[Asked] = []
        while len(drawings) < DRAWINGS_PER_FAMILY:
            cls, color = mw.CLASSES[len(drawings) % len(mw.CLASSES)], one(NAMED)
            each = Asked(cls, one(MARKED), color if family in COLORED else "", family, one(HUES), "")
            if each.combination not in seen and each not in drawings:
                drawings.append(each)
        asked += drawings
    return asked


def seen_combinations(count: int = bank.DEVELOPMENT_FROM) -> set[tuple[str, ...]]:
    """Return the combinations in the first drawings of the bank (two minutes for all)."""
    things = (bank.factors_of(i)[:2] for i in range(count))
    return {combination(subject, style) for subject, style in things if style}
