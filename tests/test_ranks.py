"""Effective ranks against dense updates, and their figure and table by layer."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from made_run import make_run
from PIL import Image

from lorabench.lora.adapter import Factors
from lorabench.lora.effective_rank import effective_rank
from lorabench.lora.layer import Masks
from lorabench.models.shapes import layer_map
from lorabench.report import write_joint_report, write_report
from lorabench.report.ranks import draw_ranks, write_ranks


def dense(update: torch.Tensor) -> float:
    """Compute Roy & Vetterli's definition on the dense matrix."""
    values = torch.linalg.svdvals(update.double())
    shares = values[values > 0] / values.sum()
    return torch.exp(-(shares * shares.log()).sum()).item()


def factors(rank: int, size_in: int, size_out: int, seed: int = 0) -> Factors:
    draw = torch.Generator().manual_seed(seed)
    return Factors(torch.randn(rank, size_in, generator=draw), torch.randn(size_out, rank, generator=draw))


@pytest.mark.parametrize("rank, size_in, size_out", [(4, 96, 64), (1, 8, 8), (16, 5, 40), (16, 40, 5), (8, 4, 6)])
def test_effective_rank_is_that_of_dense_update(rank: int, size_in: int, size_out: int) -> None:
    own = factors(rank, size_in, size_out)
    assert effective_rank(own.down, own.up) == pytest.approx(dense(own.up.double() @ own.down.double()), rel=1e-9)


def test_effective_rank_counts_equal_directions() -> None:
    down, up = torch.eye(12)[:7], torch.eye(9)[:, :7]
    assert effective_rank(down, 3 * up) == pytest.approx(7)
    assert effective_rank(down[:1], up[:, :1]) == pytest.approx(1)
    assert effective_rank(down, torch.zeros_like(up)) == 0.0  # untrained adapter
    assert effective_rank(down[:0], up[:, :0]) == 0.0  # layer without this adapter
    assert effective_rank(down * torch.nan, up) != effective_rank(down, up)


def test_masks_of_every_kind_are_applied() -> None:
    own = factors(6, 20, 30)
    draw = torch.Generator().manual_seed(1)
    masks = Masks(*(torch.rand(size, generator=draw) for size in (30, 6, 20)))
    assert masks.o is not None and masks.r is not None and masks.i is not None
    update = torch.diag(masks.o) @ own.up @ torch.diag(masks.r) @ own.down @ torch.diag(masks.i)
    masked = masks.masked(own)
    assert effective_rank(masked.down, masked.up) == pytest.approx(dense(update), rel=1e-5)
    closed = Masks(r=torch.tensor([1.0, 0, 0, 0, 0, 0]), i=masks.i).masked(own)
    assert effective_rank(closed.down, closed.up) == pytest.approx(1)


LAYERS = layer_map("sdxl")
MIDDLE, UP = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "up_blocks.0.attentions.0.proj_in"


def test_figure_and_table_average_adapters_projections_and_pairs(tmp_path: Path) -> None:
    layers = list(LAYERS.trained())
    ranks = {
        f"pair {k}": {layer: [10.0 + k, 20.0 + k, float(i // 8)] for i, layer in enumerate(layers)} for k in range(3)
    }
    write_ranks(tmp_path, ranks, ["content", "content", "style"], LAYERS)
    table = pd.read_csv(tmp_path / "figures" / "rank_by_layer.csv")
    assert list(table) == ["position", "block", "layer", "role", "mean", "min", "max", "pairs"]
    assert len(table) == 2 * 560 and list(table["layer"][::2]) == layers
    content = table[table["role"] == "content"]
    assert set(zip(content["mean"], content["min"], content["max"], content["pairs"], strict=True)) == {(16, 15, 17, 3)}
    with Image.open(tmp_path / "figures" / "rank_by_layer.png") as picture:
        assert picture.size == (1440, 528)

    [axes] = draw_ranks(ranks, ["content", "content", "style"], layers, LAYERS).axes
    drawn = {}
    for line in axes.lines:
        if line.get_marker() == "o":
            drawn.setdefault(line.get_color(), []).extend(np.asarray(line.get_xydata()).tolist())
    first, second = drawn.values()
    assert first == [[i, 16] for i in range(70)] and second == [[i, i] for i in range(70)]
    assert axes.get_legend_handles_labels()[1] == ["content", "style"]


def test_pairs_of_different_adapters_and_layers(tmp_path: Path) -> None:
    ranks = {
        "a": {MIDDLE: [1.0, 4.0]},
        "b": {MIDDLE: [3.0, 5.0, np.nan], UP: [2, 2, 2]},
    }
    write_ranks(tmp_path, ranks, {"a": ["content", "style"], "b": ["content", "content", "style"]}, LAYERS)
    table = pd.read_csv(tmp_path / "figures" / "rank_by_layer.csv", index_col=["layer", "role"])
    assert table.loc[(MIDDLE, "content"), "mean"] == 2.5
    assert table.loc[(MIDDLE, "style"), ["mean", "pairs"]].tolist() == [4.0, 1]  # the other merge diverged
    assert table.loc[(UP, "style"), "pairs"] == 1


def test_no_merges_no_figure(tmp_path: Path) -> None:
    write_ranks(tmp_path, {}, ["content", "style"], LAYERS)
    assert not list(tmp_path.iterdir())


def test_page_shows_figure_of_each_run_that_has_one(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, name, images=1) for name in ("direct", "duolora")]
    write_ranks(runs[0], {"a": {MIDDLE: [1.0, 4.0]}}, ["content", "style"], LAYERS)
    picture = base64.b64encode((runs[0] / "figures" / "rank_by_layer.png").read_bytes()).decode()
    for folder, count in ((runs[0], 1), (runs[1], 0)):
        write_report(folder)
        page = (folder / "report.html").read_text()
        assert page.count(picture) == count and page.count("updates by depth") == count
    write_joint_report(runs, tmp_path)
    assert (tmp_path / "report.html").read_text().count(picture) == 1
