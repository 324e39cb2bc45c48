"""SSR-Merge (arXiv 2606.10617): the merged factors that answer, on each LoRA's own prompt, as that LoRA alone does.

    D = [D_1; ...; D_K],  U = [U_1 | ... | U_K],  X_k: inputs of a layer while LoRA k denoises under its prompt
    Z_k = D X_k,   G = sum_k Z_k Z_k^T,   Q = stack_k( D_k X_k Z_k^T ),   R = Q G^-1
    dW_m = U R D

Against the direct merge (R = I): U' = U R, of rank sum_k r_k, exactly. Calibration asks for no images: one prompt a
LoRA,
one timestep, noise. The timestep is the first of the schedule here, where noise is what the network gets; `ridge` times
the mean eigenvalue is added to G, which `draws` few tokens leave near singular.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from lorabench.base import UserError
from lorabench.merging.method import Method

if TYPE_CHECKING:
    from lorabench.lora.adapter import LoRA
    from lorabench.merging.step import MergeStep


@dataclass(frozen=True, kw_only=True)
class SSRMerge(Method):
    """draws: of noise.  ridge: in units of the mean eigenvalue of G."""

    needs_images: ClassVar[bool] = False

    draws: int
    ridge: float

    def __post_init__(self) -> None:
        if self.draws < 1 or self.ridge < 0:
            raise UserError("method.draws must be 1 or more and method.ridge 0 or more; type method.draws=1")

    @property
    def combines(self) -> bool:
        return True

    def solve(self, draw: Callable[[int, int], "MergeStep"], seed: int) -> "LoRA":
        import torch

        from lorabench.lora.adapter import Factors, LoRA
        from lorabench.merging.moments import teacher_moments

        steps = [from_noise(draw(step, 1)) for step in range(self.draws)]
        merged = {}
        for name, moments in teacher_moments(steps).items():  # [K, R, R]: E[z_k z_k^T]
            layer = steps[0].adapters.layers[name]
            own = torch.cat([moment.split(layer.ranks)[k] for k, moment in enumerate(moments)])  # D_k X_k Z_k^T
            total = moments.sum(0).double()
            total = total + self.ridge * total.diagonal().mean() * torch.eye(len(total), device=total.device)
            r = torch.linalg.solve(total, own.double().mT).mT.float()
            merged[name] = Factors(layer.down.detach().cpu(), (layer.up.float() @ r).detach().cpu())
        return LoRA(merged)


def from_noise(step: "MergeStep") -> "MergeStep":
    """The same draw at the first timestep of the schedule, where there is nothing but noise."""
    import torch

    images = tuple(replace(each, x=step.noise) for each in step.images)
    return replace(step, images=images, t=torch.full_like(step.t, step.model.process.noisiest))
