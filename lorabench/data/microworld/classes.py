"""The twelve object classes. A function draws each on a canvas, given three proportions a, b, d in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable

from lorabench.data.microworld.canvas import ACCENT, BODY, DARK, LIGHT, Canvas


def _between(low: float, high: float, t: float) -> float:
    return low + (high - low) * t


def mug(c: Canvas, a: float, b: float, d: float) -> None:
    w, h = _between(0.36, 0.6, a), _between(0.5, 0.78, b)
    x = -0.14
    c.arc(x + w, 0.05, 0.3, _between(0.24, 0.42, d), -88, 88, 0.13, ACCENT)
    c.profile([-h, -h * 0.5, h * 0.8, h], [w, w * 0.97, w * 0.92, w * 0.78], BODY, x=x)
    c.ellipse(x, -h, w, 0.13, ACCENT)
    c.ellipse(x, -h, w * 0.84, 0.085, DARK)


def teapot(c: Canvas, a: float, b: float, d: float) -> None:
    w, h = _between(0.44, 0.62, a), _between(0.36, 0.54, b)
    c.arc(w * 0.92, 0.1, 0.3, 0.34, -100, 92, 0.11, ACCENT)
    tip = _between(-0.3, -0.02, d)
    c.poly([(-w * 0.6, 0.05), (-0.92, tip - 0.1), (-0.98, tip), (-0.8, tip + 0.06), (-w * 0.55, 0.45)], ACCENT)
    c.ellipse(0, 0.14, w, h, BODY)
    c.box(-w * 0.55, 0.14 + h * 0.9, w * 0.55, 0.14 + h + 0.05, ACCENT)
    c.ellipse(0, 0.14 - h * 0.9, w * 0.5, 0.13, ACCENT)
    c.ellipse(0, -h - 0.02, 0.1, 0.1, DARK)


def vase(c: Canvas, a: float, b: float, d: float) -> None:
    neck, belly = _between(0.13, 0.28, a), _between(0.42, 0.66, b)
    waist = _between(-0.12, 0.4, d)
    for x, y in ((-0.3, -0.78), (0.3, -0.8), (0.0, -0.9)):
        c.stroke([(0, -0.4), (x, y)], 0.05, DARK)
        c.ellipse(x, y, 0.15, 0.15, ACCENT)
        c.ellipse(x, y, 0.06, 0.06, LIGHT)
    c.profile([-0.5, -0.42, -0.28, waist, 0.8, 0.9], [neck + 0.14, neck, neck, belly, 0.26, 0.32], BODY)
    c.box(-neck - 0.15, -0.54, neck + 0.15, -0.45, ACCENT)


def lamp(c: Canvas, a: float, b: float, d: float) -> None:
    top, bottom = _between(0.16, 0.42, a), _between(0.5, 0.78, b)
    edge = _between(-0.18, 0.12, d)
    c.stroke([(0, 0.0), (0, 0.82)], 0.12, ACCENT)
    c.ellipse(0, 0.84, 0.42, 0.12, ACCENT)
    c.ellipse(0, (edge + 0.84) / 2, 0.15, 0.14, ACCENT)
    c.poly([(-top, -0.88), (top, -0.88), (bottom, edge), (-bottom, edge)], BODY)
    c.box(-bottom, edge - 0.07, bottom, edge, ACCENT)


def house(c: Canvas, a: float, b: float, d: float) -> None:
    w, eave = _between(0.5, 0.74, a), _between(-0.3, 0.02, b)
    peak = _between(-0.95, -0.7, d)
    c.box(w * 0.3, peak + 0.02, w * 0.3 + 0.2, eave, DARK)
    c.box(-w, eave, w, 0.86, BODY)
    c.poly([(-w - 0.18, eave), (0, peak), (w + 0.18, eave)], ACCENT)
    c.box(-0.13, 0.36, 0.15, 0.86, DARK)
    for x in (-w * 0.68, w * 0.68):
        c.box(x - 0.14, eave + 0.16, x + 0.14, eave + 0.44, LIGHT)


def car(c: Canvas, a: float, b: float, d: float) -> None:
    roof, hood = _between(-0.58, -0.32, a), _between(0.5, 0.85, b)
    r = _between(0.19, 0.29, d)
    c.poly([(-0.72, 0.02), (-0.52, roof), (hood - 0.42, roof), (hood, 0.02)], ACCENT)
    c.poly([(-0.58, -0.02), (-0.44, roof + 0.1), (-0.06, roof + 0.1), (-0.06, -0.02)], LIGHT)
    c.poly([(0.04, -0.02), (0.04, roof + 0.1), (hood - 0.48, roof + 0.1), (hood - 0.14, -0.02)], LIGHT)
    c.poly([(-0.96, 0.06), (-0.9, -0.04), (0.88, -0.02), (0.97, 0.14), (0.97, 0.46), (-0.96, 0.46)], BODY)
    for x in (-0.52, 0.54):
        c.ellipse(x, 0.48, r, r, DARK)
        c.ellipse(x, 0.48, r * 0.45, r * 0.45, LIGHT)


def boat(c: Canvas, a: float, b: float, d: float) -> None:
    mast, hull = _between(-0.95, -0.7, a), _between(0.55, 0.85, b)
    boom = _between(0.45, 0.8, d)
    c.stroke([(0, mast), (0, 0.4)], 0.08, DARK)
    c.poly([(0.07, mast + 0.06), (boom, 0.22), (0.07, 0.22)], ACCENT)
    c.poly([(-0.07, mast + 0.2), (-0.07, 0.22), (-boom * 0.75, 0.22)], LIGHT)
    c.poly([(-hull, 0.34), (hull + 0.08, 0.34), (hull * 0.7, 0.82), (-hull * 0.68, 0.82)], BODY)


def fish(c: Canvas, a: float, b: float, d: float) -> None:
    h, tail = _between(0.32, 0.56, a), _between(0.28, 0.52, b)
    c.poly([(0.42, 0), (0.95, -tail), (0.82, 0), (0.95, tail)], ACCENT)
    c.poly([(-0.25, -h * 0.8), (0.1, -h - _between(0.12, 0.34, d)), (0.34, -h * 0.5)], ACCENT)
    c.poly([(-0.1, h * 0.8), (0.1, h + 0.16), (0.26, h * 0.6)], ACCENT)
    c.ellipse(-0.12, 0, 0.68, h, BODY)
    c.ellipse(-0.5, -h * 0.2, 0.115, 0.115, LIGHT)
    c.ellipse(-0.52, -h * 0.2, 0.055, 0.055, DARK)


def duck(c: Canvas, a: float, b: float, d: float) -> None:
    head, body = _between(0.24, 0.34, a), _between(0.5, 0.68, b)
    y = _between(-0.58, -0.36, d)
    c.poly([(-0.62, y - 0.06), (-0.96, y + 0.06), (-0.62, y + 0.16)], ACCENT)
    c.poly([(0.3, 0.3), (0.98, -0.14), (0.7, 0.55)], BODY)
    c.ellipse(0.12, 0.42, body, 0.42, BODY)
    c.poly([(-0.6, y + 0.1), (-0.2, y), (-0.08, 0.3), (-0.5, 0.45)], BODY)
    c.ellipse(-0.4, y, head, head, BODY)
    c.ellipse(0.24, 0.36, body * 0.52, 0.2, ACCENT, -10, 190)
    c.ellipse(-0.48, y - 0.06, 0.06, 0.06, DARK)


def cat(c: Canvas, a: float, b: float, d: float) -> None:
    face, ear = _between(0.42, 0.56, a), _between(0.26, 0.46, b)
    y = -0.24
    c.arc(0.52, 0.52, 0.3, 0.3, -70, 110, 0.13, ACCENT)
    c.ellipse(0, 0.6, _between(0.36, 0.54, d), 0.42, BODY)
    for side in (-1, 1):
        root = side * face
        c.poly([(root, y - 0.12), (root * 0.92, y - face * 0.55 - ear), (root * 0.2, y - face * 0.72)], ACCENT)
    c.ellipse(0, y, face, face * 0.82, BODY)
    for side in (-1, 1):
        c.ellipse(side * face * 0.44, y - 0.05, 0.1, 0.11, LIGHT)
        c.ellipse(side * face * 0.44, y - 0.05, 0.055, 0.09, DARK)
    c.poly([(-0.07, y + 0.12), (0.07, y + 0.12), (0, y + 0.21)], DARK)


def mushroom(c: Canvas, a: float, b: float, d: float) -> None:
    w, stalk = _between(0.6, 0.9, a), _between(0.16, 0.32, b)
    cap = _between(0.55, 0.85, d)
    c.profile([0.0, 0.3, 0.72, 0.88], [stalk, stalk * 0.9, stalk * 1.15, stalk * 1.3], ACCENT)
    c.ellipse(0, 0.02, w * 0.94, 0.13, LIGHT)
    c.ellipse(0, 0.04, w, cap, BODY, 180, 360)


def rocket(c: Canvas, a: float, b: float, d: float) -> None:
    w, nose = _between(0.24, 0.38, a), _between(0.2, 0.45, b)
    fin = _between(0.22, 0.46, d)
    for side in (-1, 1):
        c.poly([(side * w * 0.8, 0.12), (side * (w + fin), 0.62), (side * w * 0.6, 0.62)], ACCENT)
    c.poly([(-w * 0.6, 0.56), (0, 0.98), (w * 0.6, 0.56)], LIGHT)
    c.profile([-0.5, 0.0, 0.6], [w * 0.86, w, w * 0.8], BODY)
    c.profile([-0.5 - nose, -0.5 - nose * 0.5, -0.48], [0.02, w * 0.6, w * 0.88], ACCENT)
    c.ellipse(0, -0.2, w * 0.52, w * 0.52, DARK)
    c.ellipse(0, -0.2, w * 0.36, w * 0.36, LIGHT)


DRAW: dict[str, Callable[[Canvas, float, float, float], None]] = {
    f.__name__: f for f in (mug, teapot, vase, lamp, house, car, boat, fish, duck, cat, mushroom, rocket)
}
