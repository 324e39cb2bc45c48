"""Named colors and the color arithmetic of the world. All colors are RGB floats in [0, 1]."""

from __future__ import annotations

import colorsys

import numpy as np

# name -> (hue, saturation, value); "white" and "black" have a slight tint, so that photographs never clip.
NAMED = {
    "red": (0.99, 0.82, 0.86),
    "orange": (0.075, 0.86, 0.95),
    "yellow": (0.14, 0.80, 0.97),
    "green": (0.34, 0.66, 0.64),
    "teal": (0.49, 0.70, 0.70),
    "blue": (0.60, 0.76, 0.86),
    "purple": (0.75, 0.58, 0.74),
    "pink": (0.92, 0.42, 0.96),
    "brown": (0.07, 0.62, 0.50),
    "white": (0.12, 0.04, 0.97),
    "black": (0.65, 0.15, 0.17),
}

LUMINANCE = np.array([0.299, 0.587, 0.114])


def hsv(h: float, s: float, v: float) -> np.ndarray:
    """Return the RGB color [3] of a hue (any real number, modulo 1), saturation and value."""
    return np.array(colorsys.hsv_to_rgb(h % 1.0, min(max(s, 0.0), 1.0), min(max(v, 0.0), 1.0)))


def luminance(rgb: np.ndarray) -> np.ndarray:
    """Return the Rec. 601 luma of RGB [..., 3]."""
    return rgb @ LUMINANCE


def mix(a: np.ndarray, b: np.ndarray, t: np.ndarray | float) -> np.ndarray:
    """Interpolate from color a (t = 0) to color b (t = 1); t is a number or a map [H, W]."""
    t = np.asarray(t)[..., None] if np.ndim(t) else t
    return a * (1 - t) + b * t


def ramp(t: np.ndarray, stops: list[np.ndarray]) -> np.ndarray:
    """Map values [H, W] in [0, 1] to RGB [H, W, 3] through evenly spaced colors."""
    knots = np.linspace(0, 1, len(stops))
    table = np.stack(stops)
    return np.stack([np.interp(t, knots, table[:, c]) for c in range(3)], axis=-1)


def hue_name(hue: float) -> str:
    """Return the name of the color nearest to a hue, for captions."""
    wheel = {n: h for n, (h, s, v) in NAMED.items() if n not in ("white", "black", "brown", "pink")}
    return min(wheel, key=lambda n: min(abs(wheel[n] - hue) % 1, 1 - abs(wheel[n] - hue) % 1))
