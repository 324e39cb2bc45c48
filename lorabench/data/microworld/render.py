"""Rendering of factors to pixels by one deterministic function."""

from __future__ import annotations

import numpy as np

from lorabench.data.microworld.canvas import Canvas
from lorabench.data.microworld.classes import DRAW
from lorabench.data.microworld.factors import Pose, Style, Subject
from lorabench.data.microworld.photo import photograph
from lorabench.data.microworld.styles import FAMILY

SUPERSAMPLING = 3


def render(subject: Subject, style: Style | None, pose: Pose, size: int = 64) -> np.ndarray:
    """Render a subject in a style (None: as a photograph) and a pose.

    Args:
        subject: The subject.
        style: The style.
        pose: The pose.
        size: Width and height in pixels, a multiple of 16.

    Returns:
        RGB uint8 [size, size, 3].
    """
    canvas = Canvas(subject, pose, size * SUPERSAMPLING)
    DRAW[subject.cls](canvas, *subject.shape)
    drawing = canvas.drawing()
    image = photograph(drawing, pose) if style is None else FAMILY[style.family](drawing, style)
    image = image.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING, 3).mean(axis=(1, 3))
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
