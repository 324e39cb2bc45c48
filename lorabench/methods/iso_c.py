"""Iso-C (Marczak et al., ICML 2025, arXiv 2502.04959): the sum of the updates with a flat spectrum.

    sum_k dW_k = P S V^T,   dW_m = w mean(S) P V^T

Against the naive sum: the same directions, all of them equally strong. The mean is over the min(out, in) singular
values of a full-rank update in the publication; a sum of LoRAs has R = sum_k r_k of them, and the mean is over those.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabench.method import Method, Site

if TYPE_CHECKING:
    from lorabench.lora import Factors


@dataclass(frozen=True, kw_only=True)
class IsoC(Method):
    """weight: w."""

    weight: float

    def combine(self, updates: Sequence["Factors"], site: Site, seed: int) -> "Factors":
        import torch

        from lorabench.lora import Factors

        whole = Factors(
            torch.cat([each.down for each in updates]), torch.cat([each.up for each in updates], dim=1)
        ).svd()
        s = whole.down.norm(dim=1)  # whole.down is S V^T
        return Factors(self.weight * s.mean() * torch.nn.functional.normalize(whole.down, dim=1), whole.up)
