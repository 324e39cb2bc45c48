"""The effective rank of a layer's update, computed from its factors."""

from __future__ import annotations

import torch
from torch import Tensor

from lorabench.lora.adapter import Factors


def effective_rank(down: Tensor, up: Tensor) -> float:
    """Return exp of the entropy of the normalized singular values of `up @ down` (Roy & Vetterli, EUSIPCO 2007).

    It is between 1 and the rank, 0.0 for an update of zero, and NaN for an update that is not finite.
    """
    if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
        return float("nan")
    values = Factors(down, up).singular_values()
    if not values.any():
        return 0.0
    shares = values / values.sum()
    return torch.special.entr(shares).sum().exp().item()
