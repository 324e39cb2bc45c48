"""The image grid: one row per pair; columns are references, single-LoRA images, merged images and the oracle.

A single pair has a sheet with one row per table row instead (pair_sheet.py).
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lorabench.report.contact_sheet import opened
from lorabench.report.folder import Picture, RunFolder
from lorabench.report.labels import BASELINES_AND_ORACLE, ORACLE, row_order
from lorabench.report.pair_sheet import draw_pair
from lorabench.report.pooling import join_pictures

MERGED = 4  # merged images per row, shared among the methods
CELL = 144  # pixels; 64 px images are enlarged 2.25 times, 1024 px images are downscaled
GAP, GROUP_GAP, MARGIN, HEAD, NAMES = 6, 20, 24, 44, 168
INK, MUTED, RULE, PAPER = "#1c1d21", "#71737c", "#d9dae0", "#ffffff"


@dataclass(frozen=True)
class Cell:
    """One cell of the grid; `picture` is None for a reference."""

    group: str
    path: Path
    picture: Picture | None = None


def grid_rows(runs: list[RunFolder]) -> dict[tuple[str, str], list[Cell | None]]:
    """Return (content, style) -> cells, with the same columns for every pair; None: the pair lacks this image."""
    pictures = join_pictures(runs)
    of: defaultdict[tuple[str, str, str], list[Picture]] = defaultdict(list)
    for p in pictures:
        of[p.label, p.content, p.style].append(p)
    pairs = list(dict.fromkeys((p.content, p.style) for p in pictures))
    methods = list(dict.fromkeys(p.label for p in pictures if p.label not in BASELINES_AND_ORACLE))
    wanted = {
        "content_only": 1,
        "style_only": 1,
        **dict.fromkeys(methods, max(1, MERGED // len(methods or "-"))),
    }
    wanted[ORACLE] = 1
    rows = {}
    for content, style in pairs:
        cells: list[Cell | None] = []
        for role, name in (("content", content), ("style", style)):
            found = next((path for run in runs for path in run.references(role, name)), None)
            cells.append(Cell(f"{role} reference", found) if found else None)
        for row, count in wanted.items():
            own = of[row, content, style][:count]
            cells += [Cell(row.replace("_", " "), p.path, p) for p in own] + [None] * (count - len(own))
        rows[content, style] = cells
    used = [any(column) for column in zip(*rows.values(), strict=True)]
    return {pair: [c for c, keep in zip(cells, used, strict=True) if keep] for pair, cells in rows.items()}


def column_groups(rows: dict[tuple[str, str], list[Cell | None]]) -> list[tuple[str, int]]:
    """Return the headings from left to right, each with the number of columns that it spans."""
    names = [next(c.group for c in column if c) for column in zip(*rows.values(), strict=True)]
    return [(name, len(list(same))) for name, same in groupby(names)]


def draw_grid(runs: list[RunFolder]) -> Image.Image:
    """Plot the grid as one RGB image."""
    pictures = join_pictures(runs)
    if len({(p.content, p.style) for p in pictures}) == 1:
        return draw_pair(runs, pictures, row_order([p.label for p in pictures]))
    rows = grid_rows(runs)
    groups = column_groups(rows)
    widest = max(ImageFont.load_default(17).getlength(name) for pair in rows for name in (pair[0], f"in {pair[1]}"))
    names = min(NAMES, int(widest))
    lefts, left = [], MARGIN + names + GROUP_GAP
    for _, span in groups:
        for _ in range(span):
            lefts.append(left)
            left += CELL + GAP
        left += GROUP_GAP - GAP
    size = (left - GROUP_GAP + MARGIN, MARGIN + HEAD + len(rows) * (CELL + GAP) - GAP + MARGIN)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)

    column = 0
    for name, span in groups:
        first, last = lefts[column], lefts[column + span - 1] + CELL
        draw.text(((first + last) / 2, MARGIN + HEAD - 18), name, INK, fit(name, last - first, 16), anchor="ms")
        draw.line((first, MARGIN + HEAD - 8, last - 1, MARGIN + HEAD - 8), RULE)
        column += span

    for i, ((content, style), cells) in enumerate(rows.items()):
        top = MARGIN + HEAD + i * (CELL + GAP)
        lines = [(line, INK, 17) for line in wrap(content, names, 17)]
        lines += [(line, MUTED, 15) for line in wrap(f"in {style}", names, 15)]
        for number, (line, color, most) in enumerate(lines):
            middle = top + CELL / 2 + 22 * (number - (len(lines) - 1) / 2)
            draw.text((MARGIN, middle), line, color, fit(line, names, most), anchor="lm")
        for cell, x in zip(cells, lefts, strict=True):
            if cell:
                sheet.paste(square(cell.path, CELL), (x, top))
            draw.rectangle((x, top, x + CELL - 1, top + CELL - 1), outline=RULE)
    return sheet


def wrap(text: str, width: int, size: int) -> list[str]:
    """Split a name into as few lines as the width allows, only after a "+" between joined names."""
    lines = [""]
    for part in re.split(r"(?<=\+)", text):
        joined = lines[-1] + part
        fits = not lines[-1] or ImageFont.load_default(size).getlength(joined) <= width
        lines = [*lines[:-1], joined] if fits else [*lines, part]
    return lines


def fit(text: str, width: int, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's built-in font at the largest size up to `size` at which the text fits into `width` pixels."""
    while size > 9 and ImageFont.load_default(size).getlength(text) > width:
        size -= 1
    return ImageFont.load_default(size)


def square(path: Path, side: int) -> Image.Image:
    """Crop an image to its central square and resize it to `side` pixels."""
    image = opened(path)
    edge = min(image.size)
    x, y = (image.width - edge) // 2, (image.height - edge) // 2
    return image.resize((side, side), Image.Resampling.LANCZOS, box=(x, y, x + edge, y + edge))
