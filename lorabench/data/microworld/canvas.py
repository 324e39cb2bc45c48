"""Rasterizer: the pieces of a subject (polygons in object space) become one map of piece numbers.

A style reads everything from that map: flat colors by part, edges between pieces, a height field for shading. In object
space, x points right, y points down, and the subject is about within [-1, 1]; in screen space the same holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from lorabench.data.microworld import colors
from lorabench.data.microworld.factors import Pose, Subject

BACKGROUND, BODY, ACCENT, DARK, LIGHT, MARK = range(6)


class Canvas:
    """Canvas for the pieces of one subject. Each piece covers earlier ones.

    Args:
        subject: The subject.
        pose: Its pose.
        pixels: Width and height of the raster.
    """

    def __init__(self, subject: Subject, pose: Pose, pixels: int):
        self.subject, self.pose, self.pixels = subject, pose, pixels
        angle = math.radians(pose.rotation)
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        self.matrix = pose.scale * 0.94 * turn @ np.diag([-1.0 if pose.flip else 1.0, 1.0])
        self.offset = np.array([pose.dx, pose.dy])
        self.parts = [BACKGROUND]
        self._image = Image.new("L", (pixels, pixels), 0)
        self._draw = ImageDraw.Draw(self._image)

    def poly(self, points, part: int) -> None:
        """Draw a filled polygon with corners [n, 2] in object space."""
        screen = np.asarray(points, dtype=float) @ self.matrix.T + self.offset
        pixels = (screen + 1) * (self.pixels / 2) - 0.5
        self.parts.append(part)
        self._draw.polygon([tuple(p) for p in pixels.tolist()], fill=len(self.parts) - 1)

    def ellipse(self, x: float, y: float, rx: float, ry: float, part: int, start=0.0, stop=360.0) -> None:
        """Draw a filled ellipse, or the part of it between two angles (degrees, clockwise from the right)."""
        t = np.radians(np.linspace(start, stop, 40))
        self.poly(np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], axis=1), part)

    def box(self, x0: float, y0: float, x1: float, y1: float, part: int) -> None:
        """Draw a filled rectangle."""
        self.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], part)

    def stroke(self, points, width: float, part: int) -> None:
        """Draw a thick polyline as one piece."""
        points = np.asarray(points, dtype=float)
        step = np.gradient(points, axis=0)
        normal = np.stack([-step[:, 1], step[:, 0]], axis=1)
        normal *= width / 2 / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
        self.poly(np.concatenate([points + normal, (points - normal)[::-1]]), part)

    def arc(self, x, y, rx, ry, start, stop, width, part) -> None:
        """Draw a thick elliptic arc, for handles, spouts and tails.

        Args:
            x, y: Center.
            rx, ry: Radii of the middle of the line.
            start, stop: Angles in degrees, clockwise from the right.
            width: Width of the line.
            part: Number of the piece.
        """
        t = np.radians(np.linspace(start, stop, 24))
        self.stroke(np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], axis=1), width, part)

    def profile(self, ys, widths, part: int, x: float = 0.0, samples: int = 32) -> None:
        """Draw a solid of revolution: half-widths at given heights, joined by a smooth curve.

        Args:
            ys: Heights, ascending.
            widths: Half-width at each height.
            part: Number of the piece.
            x: Position of the axis.
            samples: Number of points of the curve.
        """
        y = np.linspace(ys[0], ys[-1], samples)
        w = np.interp(y, ys, widths)
        w = np.concatenate([[w[0]], np.convolve(w, [0.25, 0.5, 0.25], "valid"), [w[-1]]])
        self.poly(np.concatenate([np.stack([x - w, y], 1), np.stack([x + w, y], 1)[::-1]]), part)

    def drawing(self) -> Drawing:
        """Return the finished raster with the marks on the body."""
        piece = np.asarray(self._image)
        label = np.array(self.parts)[piece]
        n = self.pixels
        axis = (np.arange(n) + 0.5) / n * 2 - 1
        screen = np.stack(np.meshgrid(axis, axis), axis=-1)
        local = (screen - self.offset) @ np.linalg.inv(self.matrix).T
        marked = _mark(self.subject.mark, local) & (label == BODY)
        label = np.where(marked, MARK, label)
        s = self.subject
        table = np.stack(
            [np.zeros(3), s.body.rgb, s.accent.rgb, [0.13, 0.12, 0.16], [0.96, 0.95, 0.90], s.mark_color.rgb]
        )
        return Drawing(piece=piece, label=label, table=table)


def _mark(kind: str, local: np.ndarray) -> np.ndarray:
    """Return the pixels that a mark covers, [H, W] bool, for object coordinates [H, W, 2]."""
    x, y = local[..., 0], local[..., 1]
    if kind == "striped":
        return np.mod(x / 0.34 + 0.25, 1) < 0.5
    if kind == "banded":
        return (np.abs(y - 0.12) < 0.15) | (np.abs(y - 0.62) < 0.08)
    if kind == "dotted":
        row = np.floor(y / 0.36)
        return np.hypot(np.mod(x + 0.2 * np.mod(row, 2), 0.4) - 0.2, np.mod(y, 0.36) - 0.18) < 0.115
    if kind == "checked":
        return np.mod(np.floor(x / 0.24 + 0.5) + np.floor(y / 0.24 + 0.5), 2) == 0
    if kind == "patched":
        return np.hypot(x + 0.22, (y - 0.28) * 0.9) < 0.3
    return np.zeros(x.shape, dtype=bool)


@dataclass(frozen=True)
class Drawing:
    """A rasterized subject before any style. Maps are [n, n]; `table` [6, 3] has the color of each part."""

    piece: np.ndarray
    label: np.ndarray
    table: np.ndarray

    @property
    def n(self) -> int:
        """Return the width in pixels."""
        return self.label.shape[0]

    @cached_property
    def mask(self) -> np.ndarray:
        """Return the pixels of the subject, [n, n] bool."""
        return self.label > 0

    @cached_property
    def xy(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the screen coordinates x, y in [-1, 1], each [n, n]."""
        axis = (np.arange(self.n) + 0.5) / self.n * 2 - 1
        x, y = np.meshgrid(axis, axis)
        return x, y

    @cached_property
    def flat(self) -> np.ndarray:
        """Return the flat colors of the parts, RGB [n, n, 3]; the background is zero."""
        return self.table[self.label]

    @cached_property
    def tone(self) -> np.ndarray:
        """Return the luminance by part [n, n], scaled to [0, 1] over the subject's parts; background 1 (paper)."""
        lum = colors.luminance(self.table)
        seen = np.unique(self.label[self.mask]) if self.mask.any() else np.array([BODY])
        low, high = lum[seen].min(), lum[seen].max()
        scaled = (lum - low) / max(high - low, 1e-3)
        scaled[BACKGROUND] = 1.0
        return scaled[self.label]

    def edges(self, width: float) -> np.ndarray:
        """Return soft lines [n, n] in [0, 1] along borders of pieces and marks; width in screen units."""
        ids = self.piece.astype(np.int32) * 8 + self.label
        hard = np.zeros(ids.shape, dtype=np.float32)
        hard[:, 1:] = np.maximum(hard[:, 1:], ids[:, 1:] != ids[:, :-1])
        hard[1:, :] = np.maximum(hard[1:, :], ids[1:, :] != ids[:-1, :])
        radius = width * self.n / 4
        blurred = ndimage.gaussian_filter(hard, max(radius, 0.6), truncate=2.5)
        return np.clip(blurred * max(radius, 0.6) * 2.6, 0, 1)

    @cached_property
    def height(self) -> np.ndarray:
        """Return a rounded relief [n, n] in [0, 1]: the smoothed distance to the border of the subject."""
        step = max(self.n // 64, 1)
        depth = np.asarray(ndimage.distance_transform_edt(self.mask[::step, ::step])) / 64
        relief = np.sqrt(np.clip(depth / 0.18, 0, 1))
        return ndimage.gaussian_filter(ndimage.zoom(relief, step, order=1), self.n / 64)

    def shade(self, light: float = 0.35) -> np.ndarray:
        """Return the Lambert shading [n, n] of the relief, about [0, 1], lit from above left (0) to above right (1)."""
        gy, gx = np.gradient(self.height * self.n / 16)
        lx = 1.4 * light - 0.7
        return np.clip((-gx * lx + gy * 0.75 + 0.65) / np.sqrt(gx**2 + gy**2 + 1), 0, 1.3)

    def blur(self, image: np.ndarray, width: float) -> np.ndarray:
        """Return a map or an RGB image after a Gaussian blur; width in screen units."""
        sigma = width * self.n / 2
        return ndimage.gaussian_filter(image, (sigma, sigma, 0) if image.ndim == 3 else sigma, truncate=2.5)
