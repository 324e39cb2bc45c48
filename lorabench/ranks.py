"""Effective rank of what an adapter adds to a layer, from its factors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import qr, svdvals


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
