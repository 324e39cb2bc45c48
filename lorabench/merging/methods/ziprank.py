"""ZipRank: learned rank masks, which is DuoLoRA without priors and cycle (the first row of its ablation table).

    dW_m = sum_k U_k diag(m_k) S_k V_k^T,   dW_k = U_k S_k V_k^T,   m_k in R^r,   k = c, s
    L = sum_k || e_m(x_k, p_k) - e_k(x_k, p_k) ||^2

The merge has masks r, which start as ones and are trained with Adam. In contrast to ZipLoRA, there are r numbers per
adapter and layer instead of d_in, and there is no similarity term.

The masks multiply the singular values of the update, as in the paper (`basis: svd`). The released code masks the
trained factors (`basis: raw`), so that its result depends on how an update is factored: (U Q)(Q^-1 D) is the same
update for any invertible Q, but its masks have another effect.

Source: Roy et al., ICCV 2025, arXiv 2504.13206.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabench.config.settings import setting
from lorabench.merging.learned import LearnedMasks
from lorabench.models.layer import Layer

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.layer import AllMasks
    from lorabench.merging.step import MergeStep


@dataclass(frozen=True, kw_only=True)
class ZipRank(LearnedMasks):
    """Rank masks.

    Args:
        basis: Factors that the masks multiply.
    """

    basis: str = setting(options=("svd", "raw"))

    def masks(self, layers: Mapping[str, Layer], seed: int) -> AllMasks:
        import torch

        from lorabench.lora.layer import Masks

        return {name: tuple(Masks(r=torch.ones(rank)) for rank in layer.ranks) for name, layer in layers.items()}

    def loss(self, step: MergeStep, masks: AllMasks) -> dict[str, Tensor]:
        return step.reconstruction(step.merged(*step.images), step.teachers())
