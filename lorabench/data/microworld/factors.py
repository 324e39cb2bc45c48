"""The factors of the world: what a subject, a style and a pose are, how they are drawn and how far apart they lie."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lorabench.data.microworld import colours

CLASSES = ("mug", "teapot", "vase", "lamp", "house", "car", "boat", "fish", "duck", "cat", "mushroom", "rocket")
MARKS = ("plain", "striped", "dotted", "banded", "checked", "patched")
SCENES = ("studio", "table", "grass", "beach", "snow", "night")
# The last three families are never shown while the base model is trained.
FAMILIES = (
    "poster", "ink", "halftone", "pencil", "neon", "watercolor", "crayon", "pixel", "glass", "woodcut",
    "duotone", "clay", "chalk", "blueprint", "gold", "stitch",
)  # fmt: skip
UNSEEN_FAMILIES = FAMILIES[-3:]
SEEN_FAMILIES = FAMILIES[:-3]


@dataclass(frozen=True)
class Colour:
    """A named colour and a small shift of hue and value, so that two red things need not be the same red."""

    name: str
    hue_shift: float = 0.0
    value_shift: float = 0.0

    @property
    def rgb(self) -> np.ndarray:
        h, s, v = colours.NAMED[self.name]
        return colours.hsv(h + self.hue_shift, s, v + self.value_shift)


@dataclass(frozen=True)
class Subject:
    """One individual: a class, three proportions in [0, 1], a body, an accent and a mark."""

    cls: str
    shape: tuple[float, float, float]
    body: Colour
    accent: Colour
    mark: str
    mark_colour: Colour


@dataclass(frozen=True)
class Style:
    """One rendering process: a family and five continuous parameters in [0, 1].

    hue and hue2 set the palette, scale the texture, weight the edges, ground the tone of the background.
    """

    family: str
    hue: float
    hue2: float
    scale: float
    weight: float
    ground: float


@dataclass(frozen=True)
class Pose:
    """How a subject stands in the picture: none of it is identity. Photographs also have a scene and its light."""

    scale: float = 0.9
    dx: float = 0.0
    dy: float = 0.0
    rotation: float = 0.0  # degrees
    flip: bool = False
    scene: str = "studio"
    light: float = 0.5  # where the light comes from, left 0 to right 1
    tone: float = 0.5  # variation inside the scene


def sample_colour(rng: np.random.Generator) -> Colour:
    name = str(rng.choice(list(colours.NAMED)))
    return Colour(name, float(rng.uniform(-0.02, 0.02)), float(rng.uniform(-0.06, 0.03)))


def _contrasting(rng: np.random.Generator, against: Colour, least: float) -> Colour:
    """A colour whose luminance differs by at least `least`, so that it stays visible in one-ink styles."""
    while True:
        colour = sample_colour(rng)
        if abs(colours.luminance(colour.rgb) - colours.luminance(against.rgb)) >= least:
            return colour


def sample_subject(rng: np.random.Generator, cls: str | None = None) -> Subject:
    """A random individual, of the given class or any."""
    cls = cls or str(rng.choice(CLASSES))
    body = sample_colour(rng)
    accent = _contrasting(rng, body, 0.12)
    mark = str(rng.choice(MARKS))
    shape = tuple(float(x) for x in rng.uniform(0, 1, 3))
    return Subject(cls, shape, body, accent, mark, _contrasting(rng, body, 0.25))  # type: ignore[arg-type]


def sample_style(rng: np.random.Generator, family: str | None = None) -> Style:
    """A random style, of the given family or any of the families the base model may see."""
    family = family or str(rng.choice(SEEN_FAMILIES))
    return Style(family, *(float(x) for x in rng.uniform(0, 1, 5)))


def sample_pose(rng: np.random.Generator) -> Pose:
    return Pose(
        scale=float(rng.uniform(0.8, 1.0)),
        dx=float(rng.uniform(-0.07, 0.07)),
        dy=float(rng.uniform(-0.05, 0.05)),
        rotation=float(rng.uniform(-9, 9)),
        flip=bool(rng.random() < 0.5),
        scene=str(rng.choice(SCENES)),
        light=float(rng.uniform(0, 1)),
        tone=float(rng.uniform(0, 1)),
    )


def content_distance(a: Subject, b: Subject) -> float:
    """Distance of two subjects in their true factors, 0 (same) to 1: class weighs a half, the rest identity."""
    shape = math.dist(a.shape, b.shape) / math.sqrt(3)
    body = float(np.linalg.norm(a.body.rgb - b.body.rgb)) / math.sqrt(3)
    accent = float(np.linalg.norm(a.accent.rgb - b.accent.rgb)) / math.sqrt(3)
    marks = [s.mark_colour.rgb if s.mark != "plain" else s.body.rgb for s in (a, b)]
    mark = 0.5 * (a.mark != b.mark) + 0.5 * float(np.linalg.norm(marks[0] - marks[1])) / math.sqrt(3)
    return 0.5 * (a.cls != b.cls) + 0.5 * (0.3 * shape + 0.3 * body + 0.15 * accent + 0.25 * mark)


def style_distance(a: Style, b: Style) -> float:
    """Distance of two styles in their true factors, 0 (same) to 1: family weighs a half; hue is a circle."""
    turn = [2 * min(abs(p - q) % 1, 1 - abs(p - q) % 1) for p, q in ((a.hue, b.hue), (a.hue2, b.hue2))]
    rest = [abs(a.scale - b.scale), abs(a.weight - b.weight), abs(a.ground - b.ground)]
    return 0.5 * (a.family != b.family) + 0.5 * float(np.average(turn + rest, weights=[3, 1, 2, 2, 2]))
