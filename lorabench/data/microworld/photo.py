"""Photographs: a shaded subject in a scene, with a contact shadow. Pose and scene vary freely."""

from __future__ import annotations

import numpy as np

from lorabench.data.microworld.canvas import Drawing
from lorabench.data.microworld.colors import hsv, mix, ramp
from lorabench.data.microworld.factors import Pose

# scene -> (sky or wall top, wall bottom, ground far, ground near) as HSV, and the height of the horizon in [-1, 1]
_SCENES = {
    "studio": ((0.60, 0.04, 0.84), (0.60, 0.03, 0.92), (0.60, 0.04, 0.80), (0.60, 0.05, 0.70), 0.45),
    "table": ((0.10, 0.22, 0.80), (0.10, 0.26, 0.88), (0.07, 0.52, 0.52), (0.07, 0.58, 0.66), 0.35),
    "grass": ((0.57, 0.45, 0.90), (0.55, 0.16, 0.96), (0.27, 0.52, 0.50), (0.28, 0.62, 0.66), 0.20),
    "beach": ((0.54, 0.50, 0.88), (0.51, 0.34, 0.82), (0.12, 0.30, 0.80), (0.11, 0.36, 0.92), 0.25),
    "snow": ((0.60, 0.22, 0.72), (0.60, 0.10, 0.86), (0.58, 0.06, 0.92), (0.58, 0.02, 0.99), 0.28),
    "night": ((0.66, 0.72, 0.16), (0.70, 0.52, 0.34), (0.64, 0.42, 0.20), (0.64, 0.40, 0.30), 0.38),
}


def photograph(d: Drawing, pose: Pose) -> np.ndarray:
    """Return the photograph of a drawing, RGB float [n, n, 3]."""
    x, y = d.xy
    top, bottom, far, near, horizon = _SCENES[pose.scene]
    shift = 0.06 * (pose.tone - 0.5)
    stops = [hsv(h + shift, s, v - 0.10 * (pose.tone - 0.5)) for h, s, v in (top, bottom, far, near)]
    horizon += 0.2 * (pose.tone - 0.5)
    wall = ramp((y + 1) / (horizon + 1), stops[:2])
    ground = ramp((y - horizon) / (1 - horizon), stops[2:])
    image = mix(wall, ground, np.clip((y - horizon) * d.n / 6, 0, 1))
    if pose.scene == "table":
        image = image * (1 - 0.12 * ((np.mod(x * 2.2 * (1.4 - y), 1) < 0.06) & (y > horizon)))[..., None]
    if pose.scene == "grass":
        image = image * (1 - 0.10 * ((np.sin(x * 34 + 6 * np.sin(y * 9)) > 0.3) & (y > horizon)))[..., None]

    light = pose.light
    floor = min(0.86 * pose.scale + pose.dy, 0.94)
    shadow = np.exp(-((((x - pose.dx + 0.5 * (light - 0.5)) / 0.62) ** 2 + ((y - floor) / 0.13) ** 2) ** 1.5))
    image = image * (1 - 0.42 * shadow[..., None])

    shade = 0.46 + 0.72 * d.shade(light)
    gloss = np.clip(d.shade(light) - 0.93, 0, 1)[..., None] * 1.1
    subject = d.flat * shade[..., None] + gloss
    subject = subject * (1 - 0.45 * d.edges(0.018)[..., None])
    return np.where(d.mask[..., None], subject, image)
