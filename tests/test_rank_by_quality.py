"""Ranks by quality: the least rank of each layer that keeps a share of its squared norm."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import Commands
from safetensors import safe_open

from lorabench.lora.adapter import Adapter
from lorabench.lora.factors import Factors

VALUES = {"proj_in": (8.0, 4.0, 2.0, 1.0), "proj_out": (1.0, 1.0, 1.0, 1.0)}


def with_values(values: tuple[float, ...], seed: int) -> Factors:
    """Factors whose update has these singular values."""
    rng = torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(torch.randn(16, len(values), generator=rng)).Q for _ in range(2))
    return Factors(v.mT.contiguous(), u * torch.tensor(values))


@pytest.mark.parametrize("keep", [0.25, 0.75, 0.9, 0.99, 0.9999, 1.0])
def test_rank_is_least_that_keeps_share(keep: float) -> None:
    base = "up_blocks.0.attentions.0"
    adapter = Adapter({f"{base}.{name}": with_values(values, k) for k, (name, values) in enumerate(VALUES.items())})
    small, error = adapter.compressed(None, keep)
    for layer, factors in adapter.items():
        squares = torch.linalg.svdvals((factors.up @ factors.down).double()).square()[:4]
        rank = next(r for r in range(1, 5) if squares[:r].sum() >= (keep - 1e-6) * squares.sum())
        assert small[layer].rank == rank
        lost = float((squares[rank:].sum() / squares.sum()).sqrt())
        assert error.layers[layer] == pytest.approx(lost, abs=1e-6)
        u, s, vt = torch.linalg.svd((factors.up @ factors.down).double())
        if rank == 4 or s[rank - 1] - s[rank] > 1e-3:  # equal singular values have no unique order
            nearest = (u[:, :rank] * s[:rank]) @ vt[:rank]
            torch.testing.assert_close((small[layer].up @ small[layer].down).double(), nearest, rtol=1e-5, atol=1e-5)


def test_command_writes_ranks_by_layer(commands: Commands, tmp_path: Path) -> None:
    base = "up_blocks.0.attentions.0"
    for name, seed in (("a", 1), ("b", 2)):
        layers = {f"{base}.transformer_blocks.0.attn1.to_{k}": Factors(
            with_values((8.0, 0.1), seed).down.repeat(1, 80), with_values((8.0, 0.1), seed).up.repeat(80, 1))
            for k in "qk"}  # fmt: skip
        Adapter(layers).save(tmp_path / f"{name}.safetensors")
    options = ["task=merge", "content=a.safetensors", "style=b.safetensors", "method=direct", "task.rank=auto"]
    done = commands.run(*options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with safe_open(tmp_path / "merged.safetensors", "pt") as file:
        ranks = {file.get_slice(key).get_shape()[0] for key in file.keys() if "lora_down" in key}  # noqa: SIM118
    assert ranks == {2} and "relative error" in done.stdout
    refused = commands.run(*options[:-1], "task.rank=best", cwd=tmp_path)
    assert refused.returncode == 2 and "task.rank=best must be at least 1 or auto" in refused.stderr
