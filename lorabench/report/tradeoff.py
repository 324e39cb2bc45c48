"""Figure of a trade-off: each method's curve between content and style, and the area that it dominates."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from lorabench.report.figures import INK, MUTED, RULE
from lorabench.report.plot_style import default_style

CURVE, AREA, OTHERS = "#3557d6", "#dfe5fa", "#c9cbd3"
ACROSS = 4


@default_style()
def draw_tradeoff(curves: pd.DataFrame, volumes: pd.DataFrame, metrics: Mapping[str, str], path: Path) -> None:
    """Plot one panel per method, with the other methods' curves behind it, and a panel of hypervolumes with intervals.

    Args:
        curves: One row per method and pair of adapter scales (lorabench/tasks/tradeoff.py).
        volumes: Hypervolume of each method with its interval.
        metrics: Metric by role, for the axis labels.
        path: Image file to write.
    """
    from matplotlib.figure import Figure

    names = volumes["method"].tolist()
    down = ceil((len(names) + 1) / ACROSS)
    across = min(ACROSS, len(names) + 1)
    figure = Figure(figsize=(3.3 * across + 0.4, 3.5 * down + 0.5), dpi=160, layout="constrained", facecolor="white")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    most = curves[["content", "style"]].max()
    least = curves[["content", "style"]].min().clip(upper=0)
    limits = {role: (least[role] - 0.06, max(most[role], 1.0) + 0.06) for role in ("content", "style")}
    for panel, name in zip(panels, names, strict=False):
        draw_method(panel, curves, name)
        panel.set(xlim=limits["content"], ylim=limits["style"])
        volume = volumes.loc[volumes["method"] == name, "hypervolume"].item()
        panel.set_title(f"{name}   {volume:.2f}", loc="left", fontsize=11, color=INK)
    for panel in panels[::across]:
        panel.set_ylabel(f"style ({metrics['style']})", fontsize=9.5, color=INK)
    for panel in panels[max(0, len(names) - across) : len(names)]:
        panel.set_xlabel(f"content ({metrics['content']})", fontsize=9.5, color=INK)
    draw_volumes(panels[len(names)], volumes)
    for panel in panels[len(names) + 1 :]:
        panel.set_visible(False)
    figure.savefig(path, metadata={"Software": None})


def draw_method(panel: Axes, curves: pd.DataFrame, name: str) -> None:
    """Plot a method's curve and dominated area; large: scales (1, 1); hollow: dominated by another of its points."""
    for other, points in curves.groupby("method", sort=False):
        if other != name:
            panel.plot(points["content"], points["style"], color=OTHERS, linewidth=0.9, zorder=2)
    own = curves.query("method == @name")
    front = own.query("front").sort_values("content")
    if not front.empty:  # a staircase: the best style among the points with at least this content
        content, style = front["content"].clip(lower=0).tolist(), front["style"].clip(lower=0).tolist()
        panel.fill_between([0, *content], [style[0], *style], step="pre", color=AREA, linewidth=0, zorder=1)
    panel.plot(own["content"], own["style"], color=CURVE, linewidth=1.4, zorder=3)
    for point in own.to_dict("records"):
        whole = point["content_strength"] == point["style_strength"] == 1
        panel.plot(
            point["content"], point["style"], "o", color=CURVE, markersize=8 if whole else 5, zorder=4,
            markerfacecolor=CURVE if point["front"] else "white",
        )  # fmt: skip
    panel.axhline(1, color=MUTED, linewidth=0.7, linestyle=":", zorder=1)
    panel.axvline(1, color=MUTED, linewidth=0.7, linestyle=":", zorder=1)
    plain(panel)


def draw_volumes(panel: Axes, volumes: pd.DataFrame) -> None:
    """Draw the hypervolumes with their intervals."""
    y = np.arange(len(volumes))
    panel.hlines(y, volumes["low"], volumes["high"], color=CURVE, linewidth=1.6, alpha=0.45)
    panel.plot(volumes["hypervolume"], y, "o", color=CURVE, markersize=5)
    panel.set_yticks(y, volumes["method"].tolist())
    panel.set_ylim(len(volumes) - 0.4, -0.6)
    panel.set_title("hypervolume", loc="left", fontsize=11, color=INK)
    plain(panel)


def plain(panel: Axes) -> None:
    """Remove the frame of a panel and draw a light grid."""
    panel.grid(color=RULE, linewidth=0.6, zorder=0)
    panel.set_axisbelow(True)
    panel.tick_params(colors=INK, labelsize=9, length=0)
    panel.spines[:].set_visible(False)
