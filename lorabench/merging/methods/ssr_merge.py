"""SSR-Merge (arXiv 2606.10617): the merged factors that answer, on each LoRA's own prompt, as that LoRA alone does.

    D = [D_1; ...; D_K],  U = [U_1 | ... | U_K],  X_k: inputs of a layer while LoRA k denoises under its prompt
    Z_k = D X_k,   G = sum_k Z_k Z_k^T,   Q = stack_k( D_k X_k Z_k^T ),   R = Q G^-1
    dW_m = U R D

Against the direct merge (R = I): U' = U R, of rank sum_k r_k, exactly. Calibration asks for no images: one prompt a
LoRA,
one timestep, noise. The timestep is the first of the schedule here, where noise is what the network gets; `ridge` times
the mean eigenvalue is added to G, which `draws` few tokens leave near singular.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabench.config.settings import setting
from lorabench.merging.layerwise import LayerwiseMerge
from lorabench.merging.merge import Activations
from lorabench.models.layer import Layer

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.adapter import Factors


@dataclass(frozen=True, kw_only=True)
class SSRMerge(LayerwiseMerge):
    """Factors that reproduce each adapter on its own prompt.

    Args:
        draws: Draws of noise.
        ridge: In units of the mean eigenvalue of G.
    """

    draws: int = setting(least=1)
    ridge: float = setting(above=0)

    @property
    def activations(self) -> Activations:
        return Activations(self.draws, batch=1, noise=True)

    def combine(self, updates: Sequence["Factors"], layer: Layer, seed: int, moments: "Tensor | None") -> "Factors":
        import torch

        from lorabench.lora.adapter import Factors

        assert moments is not None  # [K, R, R]: E[z_k z_k^T]
        whole = Factors.total(updates)
        own = torch.cat([moment.split(layer.ranks)[k] for k, moment in enumerate(moments)])  # D_k X_k Z_k^T
        total = moments.sum(0).double()
        total = total + self.ridge * total.diagonal().mean() * torch.eye(len(total), device=total.device)
        r = torch.linalg.solve(total, own.double().mT).mT.float()
        return Factors(whole.down, (whole.up.to(r) @ r).cpu())
