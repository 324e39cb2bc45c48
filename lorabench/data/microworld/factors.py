"""The factors of the world: subjects, styles and poses, how they are sampled, and distances between them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lorabench.data.microworld import colors

CLASSES = ("mug", "teapot", "vase", "lamp", "house", "car", "boat", "fish", "duck", "cat", "mushroom", "rocket")
MARKS = ("plain", "striped", "dotted", "banded", "checked", "patched")
SCENES = ("studio", "table", "grass", "beach", "snow", "night")
# The base model is never trained on the last three families.
FAMILIES = (
    "poster", "ink", "halftone", "pencil", "neon", "watercolor", "crayon", "pixel", "glass", "woodcut",
    "duotone", "clay", "chalk", "blueprint", "gold", "stitch",
)  # fmt: skip
UNSEEN_FAMILIES = FAMILIES[-3:]
SEEN_FAMILIES = FAMILIES[:-3]


@dataclass(frozen=True)
class Color:
    """A named color with a small shift of hue and value, so that two red things need not have the same red."""

    name: str
    hue_shift: float = 0.0
    value_shift: float = 0.0

    @property
    def rgb(self) -> np.ndarray:
        """Return the RGB color [3]."""
        h, s, v = colors.NAMED[self.name]
        return colors.hsv(h + self.hue_shift, s, v + self.value_shift)


@dataclass(frozen=True)
class Subject:
    """An individual: a class, three proportions in [0, 1], colors of body and accent, and a mark."""

    cls: str
    shape: tuple[float, float, float]
    body: Color
    accent: Color
    mark: str
    mark_color: Color


@dataclass(frozen=True)
class Style:
    """A style: a family of rendering functions and five parameters in [0, 1].

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
    """The place of a subject in an image, not part of its identity. Photographs also have a scene and light."""

    scale: float = 0.9
    dx: float = 0.0
    dy: float = 0.0
    rotation: float = 0.0  # degrees
    flip: bool = False
    scene: str = "studio"
    light: float = 0.5  # direction of the light, from left 0 to right 1
    tone: float = 0.5  # variation inside the scene


def sample_color(rng: np.random.Generator) -> Color:
    """Sample a color."""
    name = str(rng.choice(list(colors.NAMED)))
    return Color(name, float(rng.uniform(-0.02, 0.02)), float(rng.uniform(-0.06, 0.03)))


def _contrasting(rng: np.random.Generator, against: Color, least: float) -> Color:
    """Sample a color whose luminance differs by at least `least`, so that it is visible in styles with one ink."""
    while True:
        color = sample_color(rng)
        if abs(colors.luminance(color.rgb) - colors.luminance(against.rgb)) >= least:
            return color


def sample_subject(rng: np.random.Generator, cls: str | None = None) -> Subject:
    """Sample an individual of a class; None samples the class."""
    cls = cls or str(rng.choice(CLASSES))
    body = sample_color(rng)
    accent = _contrasting(rng, body, 0.12)
    mark = str(rng.choice(MARKS))
    shape = tuple(float(x) for x in rng.uniform(0, 1, 3))
    return Subject(cls, shape, body, accent, mark, _contrasting(rng, body, 0.25))  # type: ignore[arg-type]


def sample_style(rng: np.random.Generator, family: str | None = None) -> Style:
    """Sample a style of a family; None samples one of the families that the base model may be trained on."""
    family = family or str(rng.choice(SEEN_FAMILIES))
    return Style(family, *(float(x) for x in rng.uniform(0, 1, 5)))


def sample_pose(rng: np.random.Generator) -> Pose:
    """Sample a pose."""
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
    """Return the distance of two subjects' factors, from 0 (equal) to 1. The class counts one half."""
    shape = math.dist(a.shape, b.shape) / math.sqrt(3)
    body = float(np.linalg.norm(a.body.rgb - b.body.rgb)) / math.sqrt(3)
    accent = float(np.linalg.norm(a.accent.rgb - b.accent.rgb)) / math.sqrt(3)
    marks = [s.mark_color.rgb if s.mark != "plain" else s.body.rgb for s in (a, b)]
    mark = 0.5 * (a.mark != b.mark) + 0.5 * float(np.linalg.norm(marks[0] - marks[1])) / math.sqrt(3)
    return 0.5 * (a.cls != b.cls) + 0.5 * (0.3 * shape + 0.3 * body + 0.15 * accent + 0.25 * mark)


def style_distance(a: Style, b: Style) -> float:
    """Return the distance of two styles' factors, from 0 (equal) to 1. The family counts one half; hue is circular."""
    turn = [2 * min(abs(p - q) % 1, 1 - abs(p - q) % 1) for p, q in ((a.hue, b.hue), (a.hue2, b.hue2))]
    rest = [abs(a.scale - b.scale), abs(a.weight - b.weight), abs(a.ground - b.ground)]
    return 0.5 * (a.family != b.family) + 0.5 * float(np.average(turn + rest, weights=[3, 1, 2, 2, 2]))
