"""Iso-C (Marczak et al., ICML 2025, arXiv 2502.04959): the sum of the updates with a flat spectrum.

    sum_k dW_k = P S V^T,   dW_m = w mean(S) P V^T

Against the direct merge: the same directions, all of them equally strong. The mean is over the min(out, in) singular
values of a full-rank update in the publication; a sum of LoRAs has R = sum_k r_k of them at most, and the mean is over
those that are not zero: a direction without strength, as where two adapters do the same, is given none.
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
    """A flat spectrum.

    Args:
        weight: w.
    """

    weight: float

    def combine(self, updates: Sequence["Factors"], layer: Layer, seed: int, moments: "Tensor | None") -> "Factors":
        from lorabench.lora.adapter import Factors

        whole = Factors.total(updates).proper_svd()  # P and S V^T
        s = whole.down.norm(dim=1, keepdim=True)
        return Factors(self.weight * s.mean() * whole.down / s, whole.up)
