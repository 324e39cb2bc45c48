"""NP-LoRA: project the content update off the input directions that the style update uses, without training.

    dW_m = dW_s + dW_c (I - rho V V^T),   V: orthonormal basis of the rows of dW_s [in, r_s]
    rho = mu / (1 + mu)   (soft, mu = 0.5),   rho = 1   (hard, `hard`)

Only D_c changes, D_c' = D_c (I - rho V V^T), so the merge has rank r_c + r_s. V is computed from the factors without a
dense update. Directions of D_s that U_s maps to zero are in no row of dW_s, so the content keeps them. One formula in
the paper has the soft projector on the left; the hard form and the appendix have it on the side of the inputs, as
here. Several styles share the V of their sum; every content is projected.

Source: arXiv 2511.11051.
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
class NPLoRA(LayerwiseMerge):
    """A projection of the contents.

    Args:
        mu: Strength of the soft projection.
        hard: Use rho = 1.
    """

    mu: float = setting(least=0)
    hard: bool

    def combine(self, updates: Sequence["Factors"], layer: Layer, seed: int, moments: "Tensor | None") -> "Factors":
        import torch

        from lorabench.lora.adapter import Factors

        rho = 1.0 if self.hard else self.mu / (1 + self.mu)
        style = Factors.total([updates[k] for k in layer.of("style")]).proper_svd()
        vt = torch.nn.functional.normalize(style.down, dim=1)
        parts = list(updates)
        for k in layer.of("content"):
            down = updates[k].down.float()
            parts[k] = Factors(down - rho * (down @ vt.mT) @ vt, updates[k].up)
        return Factors.total(parts)
