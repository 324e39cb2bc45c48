"""TSV-Merge: make the singular vectors of all updates orthogonal, then sum.

    dW_k = P_k S_k V_k^T,   P = [P_1 | ... | P_K],  V alike,  S = diag(S_1, ..., S_K)
    dW_m = w P' S V'^T,     X' = the orthonormal matrix nearest to X (Procrustes: Y Z^T of the SVD X = Y E Z^T)

The direct merge has P and V themselves, so that updates in common directions add up there. The paper keeps 1 / K of the
singular vectors of each full-rank update. A LoRA has r_k of them, and all are kept, so the merge has rank sum_k r_k,
exactly. If the vectors are linearly dependent (in narrow layers, or for equal adapters), no nearest matrix is
orthonormal. Then X' is the nearest one within their span, so that the merge of equal adapters is that adapter.

Source: Gargiulo et al., CVPR 2025, arXiv 2412.00081.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabench.merging.layerwise import LayerwiseMerge
from lorabench.models.layer import Layer

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.adapter import Factors

DEPENDENT = 1e-4  # singular values of unit columns in fp32 below this are rounding errors


@dataclass(frozen=True, kw_only=True)
class TSV(LayerwiseMerge):
    """A sum with orthonormal singular vectors.

    Args:
        weight: Scale w.
    """

    weight: float

    def combine(self, updates: Sequence["Factors"], layer: Layer, seed: int, moments: "Tensor | None") -> "Factors":
        import torch

        from lorabench.lora.adapter import Factors

        each = [update.proper_svd() for update in updates]  # P_k and S_k V_k^T
        s = torch.cat([update.down.norm(dim=1) for update in each])
        p = nearest_orthonormal(torch.cat([update.up for update in each], dim=1))
        v = nearest_orthonormal(torch.cat([torch.nn.functional.normalize(update.down, dim=1) for update in each]).mT)
        return Factors(self.weight * s[:, None] * v.mT, p)


def nearest_orthonormal(x: "Tensor") -> "Tensor":
    """Return Y Z^T of the SVD x = Y E Z^T without singular values of zero, computed in float64."""
    import torch

    y, e, zt = torch.linalg.svd(x.double(), full_matrices=False)
    there = e > DEPENDENT
    return (y[:, there] @ zt[there]).to(x)
