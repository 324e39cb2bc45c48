"""KnOTS: TIES in a basis that all updates of a layer share.

    [dW_1 | ... | dW_K] = P S [V_1 | ... | V_K]      (SVD; P S [out, R], V_k [R, in])
    dW_m = P S * w TIES(V_1, ..., V_K)               (see ties.py)

The merge has new factors, P S and the merged V, of rank R <= sum_k r_k. This is exact. With D_k^T = Q_k T_k, the SVD is
computed of the narrow matrix [U_1 T_1^T | ... | U_K T_K^T], so that no dense update is formed.

Source: Stoica et al., ICLR 2025, arXiv 2410.19735.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabench.config.settings import setting
from lorabench.merging.layerwise import LayerwiseMerge
from lorabench.models.layer import Layer

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.adapter import Factors


@dataclass(frozen=True, kw_only=True)
class KnOTS(LayerwiseMerge):
    """TIES in a shared basis.

    Args:
        density: Share of the entries of each V_k that TIES keeps.
        weight: Scale w.
        sign: Election of signs by TIES, "total" or "frequency".
    """

    density: float = setting(above=0, most=1)
    weight: float
    sign: str = setting(options=("total", "frequency"))

    def combine(self, updates: Sequence["Factors"], layer: Layer, seed: int, moments: "Tensor | None") -> "Factors":
        import torch
        from peft.utils.merge_utils import ties

        from lorabench.lora.adapter import Factors

        narrow = [torch.linalg.qr(each.down.double().mT) for each in updates]
        joined = torch.cat([each.up.double() @ qr.R.mT for each, qr in zip(updates, narrow, strict=True)], dim=1)
        p, s, vt = torch.linalg.svd(joined, full_matrices=False)
        parts = vt.split([len(qr.R) for qr in narrow], dim=1)  # a rank above the width spans only the width
        shared = [(part @ qr.Q.mT).float() for part, qr in zip(parts, narrow, strict=True)]
        weights = torch.full((len(shared),), self.weight)
        return Factors(ties(shared, weights, self.density, self.sign), (p * s).float())  # pyright: ignore[reportArgumentType]
