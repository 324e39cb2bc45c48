"""Iso-C: the sum of the updates, with equal singular values.

    sum_k dW_k = P S V^T,   dW_m = w mean(S) P V^T

The merge has the directions of the direct merge with equal strength. In the paper, the mean is over the min(out, in)
singular values of a full-rank update. A sum of LoRAs has at most R = sum_k r_k, and the mean is over those that are not
zero, so that directions without strength (for example, of two equal adapters) stay zero.

Source: Marczak et al., ICML 2025, arXiv 2502.04959.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabench.merging.layerwise import LayerwiseMerge
from lorabench.models.layer import Layer

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.adapter import Factors


@dataclass(frozen=True, kw_only=True)
class IsoC(LayerwiseMerge):
    """A sum with equal singular values.

    Args:
        weight: Scale w.
    """

    weight: float

    def combine(self, updates: Sequence["Factors"], layer: Layer, seed: int, moments: "Tensor | None") -> "Factors":
        from lorabench.lora.adapter import Factors

        whole = Factors.total(updates).proper_svd()  # P and S V^T
        s = whole.down.norm(dim=1, keepdim=True)
        return Factors(self.weight * s.mean() * whole.down / s, whole.up)
