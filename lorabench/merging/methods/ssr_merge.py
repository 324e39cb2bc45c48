"""SSR-Merge: factors whose output, for each LoRA's own prompt, is closest to the output of that LoRA.

    D = [D_1; ...; D_K],  U = [U_1 | ... | U_K],  X_k: inputs of a layer while LoRA k denoises under its prompt
    Z_k = D X_k,   G = sum_k Z_k Z_k^T,   Q = stack_k( D_k X_k Z_k^T ),   R = Q G^-1
    dW_m = U R D

The direct merge is R = I. The merge has U' = U R and rank sum_k r_k, exactly. Calibration needs no images: one prompt
per LoRA, one timestep and noise. Here the timestep is the first of the schedule, for which the denoiser's input is
noise. `ridge` times the mean eigenvalue is added to G, which is nearly singular for few `draws`.

Source: arXiv 2606.10617.
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
        draws: Number of noise draws.
        ridge: Regularization of G, relative to its mean eigenvalue.
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
