"""TSV-Merge (Gargiulo et al., CVPR 2025, arXiv 2412.00081): singular vectors of the updates are made orthogonal.

    dW_k = P_k S_k V_k^T,   P = [P_1 | ... | P_K],  V likewise,  S = diag(S_1, ..., S_K)
    dW_m = w P' S V'^T,     X' = the orthonormal matrix nearest to X (Procrustes: Y Z^T of the SVD X = Y E Z^T)

Against the direct merge, which has P and V themselves: updates that point into the same directions no longer add up
there.
The publication keeps 1 / K of each full-rank update's singular vectors; a LoRA has r_k of them, and all are kept, so
that the merge has rank sum_k r_k, exactly. Where the vectors depend on each other, as in layers too narrow for that
many or of equal adapters, no nearest matrix is orthonormal; X' is then the one within their span, so that the merge of
equal adapters is the adapter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabench.merging.layerwise import LayerwiseMerge
from lorabench.models.layer import Layer

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.adapter import Factors

DEPENDENT = 1e-4  # columns are of length 1 and in fp32: what is below is rounding


@dataclass(frozen=True, kw_only=True)
class TSV(LayerwiseMerge):
    """Orthonormal singular vectors.

    Args:
        weight: w.
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
    """Y Z^T of the SVD x = Y E Z^T, of the directions that x has, in float64."""
    import torch

    y, e, zt = torch.linalg.svd(x.double(), full_matrices=False)
    there = e > DEPENDENT
    return (y[:, there] @ zt[there]).to(x)
