"""The prompts of `python -m pretraining evaluate`, and the factors that each names.

192 photographs name color, mark, class and scene; 208 drawings name color, mark, class, hue and family. The combination
of a drawing occurs in none of the first SEEN images of the bank; photographs have too few combinations for that. Only
some families keep a subject's colors, so a drawing in another is not asked for its color, though its prompt names one,
as captions do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from lorabench.base import seed_of
from lorabench.data import microworld as mw
from lorabench.data.microworld.captions import PLACE
from lorabench.data.microworld.colors import NAMED, hue_name
from lorabench.data.microworld.factors import MARKS
from pretraining import bank

COLORED = ("watercolor", "crayon", "pixel", "glass", "clay")  # seen families that keep a subject's colors
SEEN = 260_000  # images of the bank, more than any training has used
PHOTOS_PER_CLASS, DRAWINGS_PER_FAMILY = 16, 16
MARKED = MARKS[1:]  # without "plain", which captions do not name
HUES = tuple(dict.fromkeys(hue_name(hue) for hue in np.linspace(0, 1, 200)))


@dataclass(frozen=True)
class Asked:
    """The factors that a prompt names; "" for the scene of a drawing, and for the style of a photograph."""

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

    def thing(self, rng: np.random.Generator) -> tuple[mw.Subject, mw.Style | None, mw.Pose]:
        """Return the factors of an image as the prompt asks for, and random others."""
        subject = mw.sample_subject(rng, self.cls)
        while subject.mark != self.mark or subject.body.name != self.color:
            subject = mw.sample_subject(rng, self.cls)
        pose = mw.sample_pose(rng)
        if self.scene:
            return subject, None, replace(pose, scene=self.scene)
        style = mw.sample_style(rng, self.family)
        while hue_name(style.hue) != self.hue:
            style = mw.sample_style(rng, self.family)
        return subject, style, pose

    @property
    def shows_color(self) -> bool:
        """Return whether the image has the subject's own colors."""
        return bool(self.scene) or self.family in COLORED

    @property
    def combination(self) -> tuple[str, ...]:
        """Return the factors of a drawing."""
        return self.cls, self.mark, self.color, self.hue, self.family


def combination(subject: mw.Subject, style: mw.Style) -> tuple[str, ...]:
    """Return the combination of a drawing, as in `Asked`."""
    return subject.cls, subject.mark, subject.body.name, hue_name(style.hue), style.family


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
            each = Asked(mw.CLASSES[len(drawings) % len(mw.CLASSES)], one(MARKED), one(NAMED), family, one(HUES), "")
            if each.combination not in seen and each not in drawings:
                drawings.append(each)
        asked += drawings
    return asked


def seen_combinations(count: int = SEEN) -> set[tuple[str, ...]]:
    """Return the combinations in the first drawings of the bank (a minute for all)."""
    things = (bank.factors_of(i)[:2] for i in range(count))
    return {combination(subject, style) for subject, style in things if style}
