"""ZipRank: the masks of DuoLoRA without its priors and its cycle (Roy et al., ICCV 2025, arXiv 2504.13206, first row of
its ablation table).

    dW_m = sum_k U_k diag(m_k) S_k V_k^T,   dW_k = U_k S_k V_k^T,   m_k in R^r,   k = c, s
    L = sum_k || e_m(x_k, p_k) - e_k(x_k, p_k) ||^2

Against the direct merge: masks r, learned from all ones with Adam. Against ZipLoRA: r numbers an adapter and layer
instead
of d_in, and no similarity term.

The masks act in the basis of the update's singular value decomposition, as the paper writes it (`basis: svd`). The
released code masks the factors as they are trained (`basis: raw`), which depends on how an update happens to be
factored: (U Q)(Q^-1 D) is the same update for any invertible Q and meets another mask.
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
        basis: Factors that the masks act on.
    """

    basis: str = setting(options=("svd", "raw"))

    def masks(self, layers: Mapping[str, Layer], seed: int) -> AllMasks:
        import torch

        from lorabench.lora.layer import Masks

        return {name: tuple(Masks(r=torch.ones(rank)) for rank in layer.ranks) for name, layer in layers.items()}

    def loss(self, step: MergeStep, masks: AllMasks) -> dict[str, Tensor]:
        return step.reconstruction(step.merged(*step.images), step.teachers())
