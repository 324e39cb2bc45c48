"""Effective rank of what an adapter adds to a layer, from its factors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.linalg import qr, svdvals

from lorabench.adapters import Gates
from lorabench.lora import Factors


def effective_rank(down: Tensor, up: Tensor) -> float:
    """exp of the entropy of the normalised singular values of `up @ down` (Roy & Vetterli, EUSIPCO 2007).

    Between 1 and the rank; 0.0 for no update at all, NaN for one that is not finite. With up = Q S and
    down^T = P T the update is Q (S T^T) P^T, so a core of rank x rank has its singular values.
    """
    if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
        return float("nan")
    factors = (factor.detach().to("cpu", torch.float64) for factor in (up, down.mT))
    left, right = (qr(factor, mode="r").R for factor in factors)
    values = svdvals(left @ right.mT)
    if not values.any():
        return 0.0
    shares = values / values.sum()
    return torch.special.entr(shares).sum().exp().item()


def ranks_of(lora: Mapping[str, Factors], gates: Mapping[str, Gates] | None = None) -> dict[str, float]:
    """Effective rank of one adapter's update at each of its sites, through its gates where there are any."""
    gated = {site: gates[site].gated(factors) if gates else factors for site, factors in lora.items()}
    return {site: effective_rank(factors.down, factors.up) for site, factors in gated.items()}
