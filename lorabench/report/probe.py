"""Figure of a layer probe: the score that content and style lose if their LoRA is scaled down in one module."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lorabench.data.concepts import ROLES
from lorabench.report.plot_style import default_style
from lorabench.report.ranks import COLORS

TITLES = {"block": "by block", "layer": "by transformer block"}


@default_style()
def draw_probe(found: pd.DataFrame, path: Path) -> None:
    """Plot one panel per kind of module, with one point and interval per role, modules from input to output."""
    from matplotlib.figure import Figure

    kinds = list(found["kind"].unique())
    heights = [len(found.query("kind == @kind")) + 1.5 for kind in kinds]
    figure = Figure(figsize=(9, 0.34 * sum(heights) + 1.2), layout="constrained", facecolor="white")
    panels = figure.subplots(len(kinds), 1, height_ratios=heights, sharex=True, squeeze=False)[:, 0]
    for panel, kind in zip(panels, kinds, strict=True):
        rows = found.query("kind == @kind").reset_index(drop=True)
        for role, shift in zip(ROLES, (-0.14, 0.14), strict=True):
            y = rows.index + shift
            panel.hlines(y, rows[f"{role}_low"], rows[f"{role}_high"], color=COLORS[role], linewidth=1.6, alpha=0.45)
            panel.plot(rows[role], y, "o", color=COLORS[role], markersize=5.5, label=role)
        panel.axvline(0, color="#71737c", linewidth=0.8)
        panel.set_yticks(rows.index, [short(name) for name in rows["module"]], fontsize=10)
        panel.set_ylim(len(rows) - 0.4, -0.6)
        panel.set_title(TITLES[kind], loc="left", fontsize=12)
        panel.grid(axis="x", color="#d9dae0", linewidth=0.7)
        panel.tick_params(length=0, colors="#1c1d21")
        panel.spines[:].set_visible(False)
    panels[-1].set_xlabel("share of its score that the role loses when its LoRA is scaled down here", fontsize=11)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    figure.savefig(path, dpi=160, metadata={"Software": None})


def short(name: str) -> str:
    """Shorten the path of a transformer block: block.attentions.0.transformer_blocks.0 becomes block · 0 · 0."""
    return name.replace(".attentions.", " · ").replace(".transformer_blocks.", " · ")
