"""The sixteen style families: each converts a drawing and a style's parameters to an image, RGB float [n, n, 3].

Each family uses hue and hue2 (palette), scale (size of its texture), weight (strength of its lines) and ground (tone of
its background) in its own way. Textures are regular instead of random, so that a small model can learn them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lorabench.data.microworld.canvas import Drawing
from lorabench.data.microworld.colors import hsv, luminance, mix, ramp
from lorabench.data.microworld.factors import Style

FAMILY: dict[str, Callable[[Drawing, Style], np.ndarray]] = {}


def family(draw: Callable[[Drawing, Style], np.ndarray]) -> Callable[[Drawing, Style], np.ndarray]:
    """Register a family by the name of its function."""
    FAMILY[draw.__name__] = draw
    return draw


def _fill(d: Drawing, color: np.ndarray) -> np.ndarray:
    """Return an image of one color."""
    return np.broadcast_to(color, (d.n, d.n, 3))


def _over(d: Drawing, subject: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """Return the subject on a background."""
    return np.where(d.mask[..., None], subject, ground)


def _wave(t: np.ndarray, softness: float = 0.25) -> np.ndarray:
    """Return a soft square wave of period 1, in [0, 1]."""
    return np.clip(np.sin(2 * np.pi * t) / softness * 0.5 + 0.5, 0, 1)


@family
def poster(d: Drawing, s: Style) -> np.ndarray:
    """Draw a screen print: four flat inks of two hues, with a sun disc behind the subject."""
    inks = [hsv(s.hue, 0.75, 0.24), hsv(s.hue, 0.72, 0.62), hsv(s.hue2, 0.62, 0.90), hsv(s.hue2, 0.14, 0.98)]
    subject = np.stack(inks)[np.clip((d.tone * 4).astype(int), 0, 3)]
    x, y = d.xy
    ground = _fill(d, hsv(s.hue2 + 0.08, 0.25 + 0.5 * s.ground, 0.95 - 0.3 * s.ground))
    disc = np.hypot(x, y + 0.1) < 0.55 + 0.35 * s.scale
    ground = mix(ground, _fill(d, hsv(s.hue + 0.05, 0.55, 0.80)), disc.astype(float))
    return mix(_over(d, subject, ground), _fill(d, inks[0]), 0.8 * d.edges(0.015 + 0.02 * s.weight))


@family
def ink(d: Drawing, s: Style) -> np.ndarray:
    """Draw with pen on paper: outlines, and a wash in the darker parts."""
    paper = _fill(d, hsv(s.hue2, 0.03 + 0.16 * s.ground, 0.99 - 0.08 * s.ground))
    pen = _fill(d, hsv(s.hue, 0.85, 0.34))
    wash = (0.12 + 0.5 * s.scale) * (1 - d.tone) * d.mask
    return mix(mix(paper, pen, wash), pen, d.edges(0.022 + 0.03 * s.weight))


@family
def halftone(d: Drawing, s: Style) -> np.ndarray:
    """Draw dots on a rotated grid, with a radius that grows with the darkness."""
    x, y = d.xy
    cell = 0.13 + 0.07 * s.scale
    u, v = (x + y) / np.sqrt(2) / cell, (x - y) / np.sqrt(2) / cell
    distance = np.hypot(np.mod(u, 1) - 0.5, np.mod(v, 1) - 0.5)
    dark = np.where(d.mask, 0.16 + 0.62 * (1 - d.tone), 0.05)
    dots = np.clip((0.68 * np.sqrt(dark) - distance) * 6 + 0.5, 0, 1)
    paper = _fill(d, hsv(s.hue2, 0.10 + 0.45 * s.ground, 0.99))
    pen = _fill(d, hsv(s.hue, 0.85, 0.40))
    return mix(mix(paper, pen, dots), pen, d.edges(0.016 + 0.03 * s.weight) * 0.9)


@family
def pencil(d: Drawing, s: Style) -> np.ndarray:
    """Draw hatching: strokes in one direction in the half tones, and a second direction in the shadows."""
    x, y = d.xy
    pitch = 0.09 + 0.07 * s.scale
    paper = _fill(d, hsv(s.hue2, 0.06, 0.97 - 0.12 * s.ground))
    lead = _fill(d, hsv(s.hue, 0.45, 0.30))
    first = _wave((x + y) / pitch) * np.clip(1.35 - 1.2 * d.tone, 0, 1)
    second = _wave((x - y) / pitch) * np.clip(0.9 - 2 * d.tone, 0, 1)
    strokes = np.maximum(first, second) * d.mask
    return mix(paper, lead, np.maximum(0.85 * strokes, d.edges(0.016 + 0.025 * s.weight)))


@family
def neon(d: Drawing, s: Style) -> np.ndarray:
    """Draw glowing tubes along the outlines, on a black wall."""
    wall = _fill(d, hsv(s.hue2, 0.75, 0.05 + 0.12 * s.ground))
    line = d.edges(0.022 + 0.02 * s.weight)
    glow = np.clip(d.blur(line, 0.07 + 0.07 * s.scale) * 2.0, 0, 1)
    color = mix(_fill(d, hsv(s.hue, 0.9, 1.0)), _fill(d, hsv(s.hue2, 0.9, 1.0)), d.tone)
    lit = mix(wall, color, np.maximum(0.75 * glow, 0.16 * d.mask))
    return mix(lit, 0.45 * color + 0.55, np.clip(line * 1.2 - 0.2, 0, 1))


@family
def watercolor(d: Drawing, s: Style) -> np.ndarray:
    """Draw transparent washes that bleed over the outline and are darker at their rims."""
    x, y = d.xy
    tint = mix(d.flat, _fill(d, hsv(s.hue, 0.6, 0.9)), 0.22)
    color = d.blur(np.where(d.mask[..., None], tint, 1.0), 0.012 + 0.025 * s.scale)
    pool = 0.5 + 0.5 * np.sin(4.5 * x + 2 * np.sin(3 * y)) * np.sin(4 * y + 1.5 * np.sin(4 * x))
    color = 1 - (1 - color) * (0.55 + 0.40 * pool)[..., None]
    rim = d.blur(d.mask.astype(float), 0.02) * (1 - d.blur(d.mask.astype(float), 0.05)) * 4
    paper = hsv(s.hue2, 0.10 + 0.30 * s.ground, 1.0)
    halo = 1 - (1 - paper) * np.clip(1.25 - np.hypot(x, y), 0, 1)[..., None]
    return np.clip(color * halo - (0.10 + 0.25 * s.weight) * np.clip(rim, 0, 1)[..., None], 0, 1)


@family
def crayon(d: Drawing, s: Style) -> np.ndarray:
    """Draw waxy strokes in the subject's own colors, with a thick colored outline on tinted paper."""
    x, y = d.xy
    paper = _fill(d, hsv(s.hue2, 0.08 + 0.22 * s.ground, 0.98))
    pitch = 0.10 + 0.09 * s.scale
    stroke = _wave((0.5 * x + y + 0.05 * np.sin(9 * x)) / pitch, 0.7)
    strokes = mix(paper, np.clip(d.flat * 1.05, 0, 1), d.mask * (0.38 + 0.58 * stroke))
    line = d.edges(0.035 + 0.04 * s.weight) * (0.65 + 0.35 * _wave((x - y) / 0.12, 0.7))
    return mix(strokes, _fill(d, hsv(s.hue, 0.8, 0.45)), line)


@family
def pixel(d: Drawing, s: Style) -> np.ndarray:
    """Draw big square pixels of few colors, on a two-tone checkerboard."""
    cells = 16
    step = d.n // cells
    block = _over(d, d.flat, _fill(d, np.full(3, -1.0))).reshape(cells, step, cells, step, 3)
    covered = (block[..., 0] >= 0).mean(axis=(1, 3)) > 0.5
    color = np.where(block >= 0, block, 0).sum(axis=(1, 3))
    color = color / np.maximum((block[..., 0] >= 0).sum(axis=(1, 3)), 1)[..., None]
    color = np.round(color * 4) / 4 * (0.85 + 0.15 * hsv(s.hue, 0.5, 1.0))
    row, column = np.indices((cells, cells))
    size = 1 + (s.scale > 0.5)
    checker = ((row // size + column // size) % 2)[..., None]
    shade = 0.16 + 0.6 * s.ground
    ground = hsv(s.hue2, 0.55, shade) * (1 + 0.35 * checker)
    small = np.where(covered[..., None], color, ground)
    image = small.repeat(step, axis=0).repeat(step, axis=1)
    seam = ((np.arange(d.n) % step) < max(step // 6, 1)).astype(float) * 0.30 * s.weight
    return image * (1 - np.maximum(seam[:, None], seam[None, :]))[..., None]


@family
def glass(d: Drawing, s: Style) -> np.ndarray:
    """Draw stained glass: saturated panes between thick leads, with a diamond window behind the subject."""
    x, y = d.xy
    pitch = 0.42 + 0.28 * s.scale
    u, v = (x + y * 0.8) / pitch, (x - y * 0.8) / pitch
    near = np.minimum(np.abs(np.mod(u, 1) - 0.5), np.abs(np.mod(v, 1) - 0.5))
    lead = np.clip((0.055 + 0.03 * s.weight - near) * 16, 0, 1) * ~d.mask
    parity = np.mod(np.floor(u + 0.5) + np.floor(v + 0.5), 2)
    value = 0.95 - 0.35 * s.ground
    panes = mix(_fill(d, hsv(s.hue, 0.55, value)), _fill(d, hsv(s.hue2, 0.55, value)), parity)
    gray = luminance(d.flat)[..., None]
    vivid = np.clip(gray + (d.flat - gray) * 1.5, 0, 1) * (0.80 + 0.30 * (1 - np.hypot(x, y)))[..., None]
    dark = np.maximum(lead, d.edges(0.04 + 0.035 * s.weight))
    return mix(_over(d, vivid, panes), _fill(d, np.array([0.06, 0.05, 0.08])), dark)


@family
def woodcut(d: Drawing, s: Style) -> np.ndarray:
    """Draw a woodcut in one ink: carved lines whose width depends on the tone, and a carved sky."""
    x, y = d.xy
    pitch = 0.12 + 0.08 * s.scale
    paper = _fill(d, hsv(s.hue2, 0.18 + 0.3 * s.ground, 0.97))
    black = _fill(d, hsv(s.hue, 0.75, 0.22))
    bend = y + 0.07 * np.sin(4 * x)
    saw = np.abs(np.mod(bend / pitch, 1) - 0.5) * 2
    carved = np.clip((saw - (1 - (0.15 + 0.80 * d.tone))) * 6 + 0.5, 0, 1)
    sky = np.clip((np.abs(np.mod(y / pitch / 1.5, 1) - 0.5) * 2 - 0.80) * 6, 0, 1)
    inked = np.where(d.mask, 1 - carved, 0.9 * sky)
    halo = np.clip(d.blur(d.mask.astype(float), 0.05) * 3, 0, 1) * ~d.mask
    return mix(paper, black, np.maximum(inked * (1 - halo), d.edges(0.03 + 0.03 * s.weight)))


@family
def duotone(d: Drawing, s: Style) -> np.ndarray:
    """Draw with a two-color gradient: a dusk sky, and the subject shaded between the two inks."""
    x, y = d.xy
    low, high = hsv(s.hue, 0.85, 0.28), hsv(s.hue2, 0.40, 1.0)
    subject = ramp(np.clip(0.75 * d.tone + 0.45 * (d.shade(0.3) - 0.5) + 0.05, 0, 1), [low, high])
    turn = (s.ground - 0.5) * 1.6
    fall = np.clip((y + turn * x + 1) / 2, 0, 1)
    ground = ramp(fall, [hsv(s.hue, 0.7, 0.55), hsv((s.hue2 + 0.04), 0.5, 0.95)])
    return mix(_over(d, subject, ground), _fill(d, low), 0.7 * s.weight * d.edges(0.03))


@family
def clay(d: Drawing, s: Style) -> np.ndarray:
    """Draw soft 3D: pastel clay under one lamp, with a round shadow on a pastel background."""
    _, y = d.xy
    pastel = mix(d.flat, _fill(d, np.array([1.0, 0.96, 0.92])), 0.38)
    light = 0.15 + 0.7 * s.scale
    shade = d.shade(light)
    subject = pastel * (0.50 + 0.62 * shade)[..., None] * (0.86 + 0.14 * hsv(s.hue, 0.5, 1.0))
    subject = subject + (np.clip(shade - 0.90, 0, 1) * (0.6 + 1.6 * s.weight))[..., None]
    ground = _fill(d, hsv(s.hue2, 0.22 + 0.25 * s.ground, 0.96)) * (1 - 0.12 * np.clip(y, 0, 1))[..., None]
    drop = np.roll(d.blur(d.mask.astype(float), 0.09), (d.n // 14, int(d.n * 0.12 * (0.5 - light))), (0, 1))
    return _over(d, subject, ground * (1 - 0.38 * drop)[..., None])


@family
def chalk(d: Drawing, s: Style) -> np.ndarray:
    """Draw with chalk on a board: broken outlines, with faint color inside."""
    x, y = d.xy
    board = _fill(d, hsv(s.hue2, 0.40, 0.18 + 0.16 * s.ground))
    grain = 0.55 + 0.45 * _wave((x * 0.4 + y) / (0.07 + 0.06 * s.scale), 0.8)
    stick = mix(_fill(d, np.array([0.96, 0.96, 0.92])), _fill(d, hsv(s.hue, 0.45, 1.0)), 0.55)
    rub = (0.08 + 0.62 * d.tone * grain) * d.mask
    return mix(mix(board, stick, rub), stick, d.edges(0.022 + 0.025 * s.weight) * (0.75 + 0.25 * grain))


@family
def blueprint(d: Drawing, s: Style) -> np.ndarray:
    """Draw a construction drawing: pale lines on a ruled dark sheet."""
    x, y = d.xy
    sheet = _fill(d, hsv(0.55 + 0.16 * s.hue, 0.72, 0.34 + 0.25 * s.ground))
    pitch = 0.2 + 0.12 * s.scale
    rule = (np.mod(x / pitch, 1) < 0.14) | (np.mod(y / pitch, 1) < 0.14)
    chalky = _fill(d, hsv(s.hue2, 0.10, 0.97))
    hatch = _wave((x + y) / 0.13, 0.5) * (1 - d.tone) * d.mask
    lines = np.maximum(0.20 * (rule & ~d.mask), 0.50 * hatch)
    return mix(mix(sheet, chalky, lines), chalky, d.edges(0.016 + 0.02 * s.weight))


@family
def gold(d: Drawing, s: Style) -> np.ndarray:
    """Draw polished metal: the relief mirrors a banded sky, on a dark velvet background."""
    x, y = d.xy
    warm = 0.06 + 0.10 * s.hue
    metal = [
        hsv(warm - 0.03, 0.90, 0.22),
        hsv(warm, 0.85, 0.62),
        hsv(warm + 0.02, 0.68, 0.92),
        hsv(warm + 0.03, 0.18, 1.0),
    ]
    mirror = 0.5 + 0.5 * np.sin((2.2 + 2.5 * s.scale) * np.pi * d.shade(0.3))
    subject = ramp(np.clip(0.15 + 0.50 * d.tone + 0.40 * mirror * (0.4 + 0.6 * s.weight), 0, 1), metal)
    velvet = _fill(d, hsv(s.hue2, 0.65, 0.12 + 0.25 * s.ground)) * (1.1 - 0.4 * np.hypot(x, y))[..., None]
    return mix(_over(d, subject, velvet), _fill(d, metal[0]), 0.6 * d.edges(0.025))


@family
def stitch(d: Drawing, s: Style) -> np.ndarray:
    """Draw cross-stitch on linen: little crosses in the subject's colors."""
    x, y = d.xy
    pitch = 0.125 + 0.05 * s.scale
    u, v = np.mod(x / pitch, 1) - 0.5, np.mod(y / pitch, 1) - 0.5
    cross = np.clip((0.24 - np.minimum(np.abs(u - v), np.abs(u + v))) * 8 + 0.2, 0, 1)
    weave = 0.92 + 0.08 * _wave(x / pitch * 2) * _wave(y / pitch * 2)
    linen = _fill(d, hsv(s.hue2, 0.12 + 0.35 * s.ground, 0.92)) * weave[..., None]
    thread = mix(d.flat, _fill(d, hsv(s.hue, 0.7, 0.8)), 0.18)
    under = thread * (0.45 + 0.25 * (1 - s.weight))
    return _over(d, mix(under, np.clip(thread * 1.08, 0, 1), cross), linen)
