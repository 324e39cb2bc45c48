"""Figure of task=tune: the points between content and style, and an image of each pair of weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from lorabench.data.concepts import Role
from lorabench.report.figures import INK, MUTED, RULE
from lorabench.report.plot_style import default_style

CHOSEN, OTHERS = "#3557d6", "#9aa0ae"
SIDE = 128  # pixels of an image in the figure


class Point(Protocol):
    """A method and its weights; see lorabench/tasks/tune.py."""

    @property
    def method(self) -> str: ...
    @property
    def content(self) -> float: ...
    @property
    def style(self) -> float: ...


@default_style()
def draw_tune(
    table: pd.DataFrame, images: Mapping[Point, np.ndarray], best: Point, metrics: Mapping[Role, str], path: Path
) -> None:
    """Plot all points with the front and the choice, and the images of the chosen method by weights.

    Args:
        table: One row per point with content, style and front.
        images: One uint8 image [H, W, 3] per point.
        best: The chosen point.
        metrics: Metric by role, for the axes.
        path: Image file to write.
    """
    from matplotlib.figure import Figure

    grid = {(each.content, each.style): image for each, image in images.items() if each.method == best.method}
    contents, styles = (sorted({key[k] for key in grid}) for k in (0, 1))
    single = [(each, image) for each, image in images.items() if 0 in (each.content, each.style)]
    figure = Figure(figsize=(10.5, 5.0), dpi=100, layout="constrained", facecolor="white")
    [[left, right]] = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.15))
    _front(left.subplots(), table, best, metrics)
    rows, columns = len(styles) + 1, len(contents)
    panels = right.subplots(rows, max(columns, len(single)), squeeze=False)
    for panel in panels.ravel():
        panel.axis("off")
    for row, style in enumerate(reversed(styles)):
        for column, content in enumerate(contents):
            panel = panels[row, column]
            panel.imshow(_small(grid[content, style]))
            picked = (content, style) == (best.content, best.style)
            panel.set_title(f"{content:g}, {style:g}", fontsize=8, color=CHOSEN if picked else MUTED,
                            fontweight="bold" if picked else "normal")  # fmt: skip
            if picked:
                panel.axis("on")
                panel.set(xticks=[], yticks=[])
                for side in panel.spines.values():
                    side.set(edgecolor=CHOSEN, linewidth=3)
    for panel, (each, image) in zip(panels[-1], single, strict=False):
        panel.imshow(_small(image))
        panel.set_title(each.method, fontsize=8, color=MUTED)
    right.suptitle(f"{best.method}, weights of content and style", fontsize=10, color=INK, x=0.02, ha="left")
    figure.savefig(path, metadata={"Software": None})


def _front(panel: object, table: pd.DataFrame, best: Point, metrics: Mapping[Role, str]) -> None:
    from matplotlib.axes import Axes

    assert isinstance(panel, Axes)
    front = table.loc[table["front"]].sort_values("content")
    panel.plot(front["content"], front["style"], color=OTHERS, linewidth=1, zorder=1)
    panel.scatter(table["content"], table["style"], s=26, color=OTHERS, zorder=2)
    for row in table.to_dict("records"):
        single = 0 in (row["content_weight"], row["style_weight"])
        text = row["method"] if single else f"{row['content_weight']:g}, {row['style_weight']:g}"
        panel.annotate(text, (row["content"], row["style"]), xytext=(5, 4), textcoords="offset points", fontsize=7.5,
                       color=MUTED)  # fmt: skip
    picked = table[(table["method"] == best.method) & (table["content_weight"] == best.content)
                   & (table["style_weight"] == best.style)].iloc[0]  # fmt: skip
    panel.scatter([picked["content"]], [picked["style"]], s=90, color=CHOSEN, marker="*", zorder=3, label="chosen")
    panel.set(xlim=(-0.08, 1.14), ylim=(-0.08, 1.1))
    panel.set_xlabel(f"content ({metrics['content']}), share of the range", fontsize=9, color=INK)
    panel.set_ylabel(f"style ({metrics['style']}), share of the range", fontsize=9, color=INK)
    panel.grid(color=RULE, linewidth=0.5)
    panel.set_axisbelow(True)
    panel.legend(frameon=False, fontsize=8, loc="upper right")
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _small(image: np.ndarray) -> np.ndarray:
    """Return an image of at most SIDE pixels."""
    from PIL import Image

    shown = Image.fromarray(image)
    shown.thumbnail((SIDE, SIDE))
    return np.asarray(shown)
