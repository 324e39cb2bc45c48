"""Effective rank of each adapter by layer: figures/rank_by_layer.png and figures/rank_by_layer.csv."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lorabench.report.figures import INK, MUTED, PAPER, RULE
from lorabench.report.folder import RANK_FIGURE

RanksByPair = Mapping[str, Mapping[str, Sequence[float]]]  # pair -> layer -> rank of each adapter
Roles = Sequence[str] | Mapping[str, Sequence[str]]  # role of each adapter; by pair if pairs have different adapters

COLORS = {"content": "#3557d6", "style": "#c4541b"}
STAGES = ("down_blocks", "mid_block", "up_blocks")
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out")


def write_ranks(folder: Path, ranks_by_pair: RanksByPair, roles: Roles) -> None:
    """Write the figure and its table into a run folder; do nothing if there are no ranks."""
    if not any(ranks_by_pair.values()):
        return
    order = network_order({layer for ranks in ranks_by_pair.values() for layer in ranks})
    figure = folder / RANK_FIGURE
    figure.parent.mkdir(exist_ok=True)
    table = by_layer(ranks_by_pair, roles, order)
    table.to_csv(figure.with_suffix(".csv"), index=False, float_format="%.6g")
    draw_ranks(ranks_by_pair, roles, order).savefig(figure, dpi=160, metadata={"Software": None})


def network_order(layers: set[str]) -> list[str]:
    """Sort layers in the order in which a UNet runs them: down, mid, up, then by number.

    >>> network_order({"up_blocks.0.x", "mid_block.x", "down_blocks.2.a.10.x", "down_blocks.2.a.9.x"})
    ['down_blocks.2.a.9.x', 'down_blocks.2.a.10.x', 'mid_block.x', 'up_blocks.0.x']
    """

    def place(layer: str) -> tuple:
        stage, _, rest = layer.partition(".")
        projection = next((i for i, name in enumerate(PROJECTIONS) if f".{name}" in layer), -1)
        path = re.split(r"\.to_", rest)[0]
        numbered = [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", path)]
        return STAGES.index(stage) if stage in STAGES else -1, numbered, projection, rest

    return sorted(layers, key=place)


def block_of(layer: str) -> str:
    """Return the short name of the block that contains a layer: "down 1", "mid", "up 0"."""
    match = re.match(r"(down|mid|up)_blocks?\.(\d+)?", layer)
    if match is None:
        return layer.partition(".")[0]
    return " ".join(part for part in match.groups() if part)


def layer_of(layer: str) -> str:
    """Return the transformer block that contains a layer, or else the layer's parent module.

    >>> layer_of("mid_block.attentions.0.transformer_blocks.3.attn1.to_q")
    'mid_block.attentions.0.transformer_blocks.3'
    """
    match = re.match(r".*?transformer_blocks\.\d+", layer)
    return match[0] if match else layer.rpartition(".")[0] or layer


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


def by_layer(ranks_by_pair: RanksByPair, roles: Roles, order: Sequence[str]) -> pd.DataFrame:
    """Return a table of position, block, layer, role, mean, min, max and pairs."""
    table = over_pairs(rank_rows(ranks_by_pair, roles, order), "layer", order)
    table.insert(1, "block", table["layer"].map(block_of))
    return table.rename(columns={"count": "pairs"})


def draw_ranks(ranks_by_pair: RanksByPair, roles: Roles, order: Sequence[str]) -> Figure:
    """Plot the mean over pairs at each transformer block, with a band from the minimum to the maximum."""
    layers = list(dict.fromkeys(layer_of(layer) for layer in order))
    rows = rank_rows(ranks_by_pair, roles, order)
    points = over_pairs(rows.assign(layer=rows["layer"].map(layer_of)), "layer", layers)

    figure = Figure(figsize=(9, 3.3), facecolor=PAPER, layout="constrained")
    axes = figure.add_subplot(facecolor=PAPER)
    blocks = [(name, len(list(same))) for name, same in groupby(layers, block_of)]
    edges = [0]
    for _, width in blocks:
        edges.append(edges[-1] + width)
    for edge in edges[1:-1]:
        axes.axvline(edge - 0.5, color=RULE, linewidth=0.8, zorder=0)

    for role in dict.fromkeys(points["role"]):
        line = points[points["role"] == role].set_index("position").reindex(range(len(layers)))
        color = COLORS.get(role, INK)
        for number, (left, right) in enumerate(pairwise(edges)):  # no line across blocks
            part = line.iloc[left:right]
            axes.fill_between(part.index, part["min"], part["max"], color=color, alpha=0.13, linewidth=0)
            axes.plot(
                part.index, part["mean"], color=color, linewidth=1.4, marker="o", markersize=3.2,
                label=role if number == 0 else None,
            )  # fmt: skip

    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.set_ylim(0, max(1.0, 1.08 * np.nan_to_num(points["max"]).max()))
    axes.set_xticks([(left + right - 1) / 2 for left, right in pairwise(edges)], [name for name, _ in blocks])
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.tick_params(length=0, labelcolor=MUTED, labelsize=9)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.spines["bottom"].set(visible=True, color=RULE)
    axes.set_ylabel("effective rank", color=MUTED, fontsize=9)
    axes.set_xlabel("transformer blocks in the order in which the UNet runs them", color=MUTED, fontsize=9)
    count = len(ranks_by_pair)
    title = f"mean over {count} pairs, band: minimum to maximum" if count > 1 else next(iter(ranks_by_pair))
    axes.set_title(title, loc="left", color=MUTED, fontsize=9, parse_math=False)
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize=9, labelcolor=INK, borderpad=0
    )
    return figure
