"""The grid of a single pair: one row of images per table row, with its meaning in words.

A reader who sees the world for the first time needs the references, the images of each LoRA only, and the ground truth
next to the merges. Images of one column start from the same noise.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from lorabench.report.contact_sheet import Cell, Strip, opened, sheet
from lorabench.report.folder import Picture, RunFolder
from lorabench.report.labels import ORACLE

IMAGES = 6  # per row
REFERENCES = 3  # images per concept
MEANING = {
    "base": "no LoRA",
    "content_only": "only the LoRA of the subject",
    "style_only": "only the LoRA of the style",
    ORACLE: "the subject in the style as the world renders it, which a perfect merge would show",
}
MERGED = "both LoRAs, merged"


def draw_pair(runs: Sequence[RunFolder], pictures: Sequence[Picture], labels: Sequence[str]) -> Image.Image:
    """Return the sheet.

    Args:
        runs: The runs, for the references.
        pictures: Images of one pair.
        labels: Rows in the order of the table.
    """
    content, style = pictures[0].content, pictures[0].style
    shown = {}
    for role, name in (("content", content), ("style", style)):
        shown[role] = next((found for run in runs if (found := run.references(role, name))), [])[:REFERENCES]
    strips = [
        Strip(
            f"What the images should show: the subject {content} in the style {style}",
            [Cell(opened(path), text) for text, paths in zip(("subject", "style"), shown.values(), strict=True)
             for path in paths],
        )
    ]  # fmt: skip
    for label in labels:
        own = sorted((each for each in pictures if each.label == label), key=lambda each: each.index)[:IMAGES]
        if own:
            strips.append(
                Strip(f"{label}: {MEANING.get(label, MERGED)}", [Cell(opened(each.path), "") for each in own])
            )
    return sheet([strip for strip in strips if strip.cells])
