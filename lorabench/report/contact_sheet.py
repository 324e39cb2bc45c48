"""A contact sheet: rows of images with a caption below each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

EDGE = 192  # pixels of an image on the sheet
GAP, LINE, TITLE = 12, 15, 24  # pixels between images, per line of a caption, and above a row
LETTERS = 30  # letters of a line below an image
INK, GRAY = "#1a1a1a", "#666666"


class Cell(NamedTuple):
    """An image and its caption."""

    image: Image.Image
    caption: str


class Strip(NamedTuple):
    """A row of a sheet and its title."""

    title: str
    cells: Sequence[Cell]


def opened(path: Path) -> Image.Image:
    """Return an image file as RGB, with the file closed."""
    with Image.open(path) as image:
        return image.convert("RGB")


def sheet(strips: Sequence[Strip]) -> Image.Image:
    """Return the sheet of some rows; small images are enlarged without smoothing."""
    width = GAP + max(len(strip.cells) for strip in strips) * (EDGE + GAP)
    heights = [TITLE + EDGE + LINE * lines(strip) + GAP for strip in strips]
    page = Image.new("RGB", (width, GAP + sum(heights)), "white")
    pen = ImageDraw.Draw(page)
    large, small = ImageFont.load_default(14), ImageFont.load_default(11)
    top = GAP
    for strip, height in zip(strips, heights, strict=True):
        pen.text((GAP, top), strip.title, INK, large)
        for index, cell in enumerate(strip.cells):
            left = GAP + index * (EDGE + GAP)
            page.paste(resized(cell.image), (left, top + TITLE))
            pen.multiline_text(
                (left, top + TITLE + EDGE + 2), "\n".join(wrap(cell.caption, LETTERS)), GRAY, small, spacing=2
            )
        top += height
    return page


def lines(strip: Strip) -> int:
    """Return the most lines that a caption of the row takes."""
    return max(len(wrap(cell.caption, LETTERS)) for cell in strip.cells)


def resized(image: Image.Image) -> Image.Image:
    """Return the image in a square of the sheet."""
    method = Image.Resampling.NEAREST if max(image.size) < EDGE else Image.Resampling.LANCZOS
    scale = EDGE / max(image.size)
    inner = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), method)
    square = Image.new("RGB", (EDGE, EDGE), "white")
    square.paste(inner, ((EDGE - inner.width) // 2, (EDGE - inner.height) // 2))
    return square
