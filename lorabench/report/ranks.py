"""Effective rank of each adapter by layer: figures/rank_by_layer.png and figures/rank_by_layer.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lorabench.models.layer_map import LayerMap
from lorabench.report.figures import INK, MUTED, PAPER, RULE
from lorabench.report.folder import RANK_FIGURE
from lorabench.report.plot_style import default_style

RanksByPair = Mapping[str, Mapping[str, Sequence[float]]]  # pair -> layer -> rank of each adapter
Roles = Sequence[str] | Mapping[str, Sequence[str]]  # role of each adapter; by pair if pairs have different adapters

COLORS = {"content": "#3557d6", "style": "#c4541b"}


@default_style()
def write_ranks(folder: Path, ranks_by_pair: RanksByPair, roles: Roles, layers: LayerMap) -> None:
    """Write the figure and its table into a run folder; do nothing if there are no ranks."""
    if not any(ranks_by_pair.values()):
        return
    order = layers.in_order({layer for ranks in ranks_by_pair.values() for layer in ranks})
    figure = folder / RANK_FIGURE
    figure.parent.mkdir(exist_ok=True)
    table = by_layer(ranks_by_pair, roles, order, layers)
    table.to_csv(figure.with_suffix(".csv"), index=False, float_format="%.6g")
    draw_ranks(ranks_by_pair, roles, order, layers).savefig(figure, dpi=160, metadata={"Software": None})


def rank_rows(ranks_by_pair: RanksByPair, roles: Roles, order: Sequence[str]) -> pd.DataFrame:
    """Return a table of pair, layer, role and rank; ranks of adapters with the same role are averaged."""
    rows = []
    for pair, ranks in ranks_by_pair.items():
        own = roles[pair] if isinstance(roles, Mapping) else roles
        for layer in (layer for layer in order if layer in ranks):
            for role in dict.fromkeys(own):
                same = [rank for rank, other in zip(ranks[layer], own, strict=True) if other == role]
                rows.append({"pair": pair, "layer": layer, "role": role, "rank": sum(same) / len(same)})
    return pd.DataFrame(rows)


def over_pairs(rows: pd.DataFrame, by: str, order: Sequence[str]) -> pd.DataFrame:
    """Return mean, minimum and maximum over the pairs, by (`by`, role) in the given order."""
    each = pd.Series(rows.groupby([by, "role", "pair"], sort=False)["rank"].mean())
    table = each.groupby(level=[by, "role"], sort=False).agg(["mean", "min", "max", "count"]).reset_index()
    places = {name: place for place, name in enumerate(dict.fromkeys(order))}
    table.insert(0, "position", [places[name] for name in table[by]])
    return table.sort_values(["position", "role"], ignore_index=True)


def by_layer(ranks_by_pair: RanksByPair, roles: Roles, order: Sequence[str], layers: LayerMap) -> pd.DataFrame:
    """Return a table of position, block, layer, role, mean, min, max and pairs."""
    table = over_pairs(rank_rows(ranks_by_pair, roles, order), "layer", order)
    table.insert(1, "block", table["layer"].map(layers.block_of))
    return table.rename(columns={"count": "pairs"})


def draw_ranks(ranks_by_pair: RanksByPair, roles: Roles, order: Sequence[str], layers: LayerMap) -> Figure:
    """Plot the mean over pairs at each transformer block, with a band from the minimum to the maximum."""
    modules = list(dict.fromkeys(layers.transformer_block_of(layer) for layer in order))
    rows = rank_rows(ranks_by_pair, roles, order)
    points = over_pairs(rows.assign(module=rows["layer"].map(layers.transformer_block_of)), "module", modules)

    figure = Figure(figsize=(9, 3.3), facecolor=PAPER, layout="constrained")
    axes = figure.add_subplot(facecolor=PAPER)
    blocks = [(name, len(list(same))) for name, same in groupby(modules, layers.block_of)]
    edges = [0]
    for _, width in blocks:
        edges.append(edges[-1] + width)
    for edge in edges[1:-1]:
        axes.axvline(edge - 0.5, color=RULE, linewidth=0.8, zorder=0)

    for role in dict.fromkeys(points["role"]):
        line = points[points["role"] == role].set_index("position").reindex(range(len(modules)))
        color = COLORS.get(role, INK)
        for number, (left, right) in enumerate(pairwise(edges)):  # no line across blocks
            part = line.iloc[left:right]
            axes.fill_between(part.index, part["min"], part["max"], color=color, alpha=0.13, linewidth=0)
            axes.plot(
                part.index, part["mean"], color=color, linewidth=1.4, marker="o", markersize=3.2,
                label=role if number == 0 else None,
            )  # fmt: skip

    axes.set_xlim(-0.5, len(modules) - 0.5)
    axes.set_ylim(0, max(1.0, 1.08 * np.nan_to_num(points["max"]).max()))
    axes.set_xticks([(left + right - 1) / 2 for left, right in pairwise(edges)], [name for name, _ in blocks])
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.tick_params(length=0, labelcolor=MUTED, labelsize=9)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.spines["bottom"].set(visible=True, color=RULE)
    axes.set_ylabel("effective rank", color=MUTED, fontsize=9)
    axes.set_xlabel("transformer blocks in the order of the forward pass", color=MUTED, fontsize=9)
    count = len(ranks_by_pair)
    title = f"mean over {count} pairs, band: minimum to maximum" if count > 1 else next(iter(ranks_by_pair))
    axes.set_title(title, loc="left", color=MUTED, fontsize=9, parse_math=False)
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize=9, labelcolor=INK, borderpad=0
    )
    return figure
