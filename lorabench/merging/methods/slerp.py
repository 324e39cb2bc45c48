"""Spherical interpolation of the dense updates of a layer (Shoemake, SIGGRAPH 1985), as used in model merging.

    dW_m = n * [ sin((1 - t) a) C / |C| + sin(t a) S / |S| ] / sin(a),   C, S: sums of the content and style updates
    a: angle between C and S as vectors,   n = (1 - t) |C| + t |S|  (`norm: mean`),  or  |C + S|  (`norm: sum`)

By default the merge is as strong as one of the updates; with `norm: sum` it is as strong as the direct merge, and equal
to it if t = 0.5 and both are equally strong. It is in the span of both updates, so factors are exact. A layer with only
one role, and updates in opposite directions, are interpolated linearly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabench.config.settings import setting
from lorabench.data.concepts import ROLES
from lorabench.merging.layerwise import LayerwiseMerge
from lorabench.models.layer import Layer

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.adapter import Factors


@dataclass(frozen=True, kw_only=True)
class Slerp(LayerwiseMerge):
    """Spherical interpolation.

    Args:
        t: 0 is the content, 1 the style.
        norm: Norm of the result, "mean" or "sum" of the norms.
    """

    t: float = setting(least=0, most=1)
    norm: str = setting(options=("mean", "sum"))

    def combine(self, updates: Sequence["Factors"], layer: Layer, seed: int, moments: "Tensor | None") -> "Factors":
        import torch

        from lorabench.lora.adapter import Factors

        own = dict(enumerate(layer.roles))
        dots = torch.tensor([[inner(a, b) for b in updates] for a in updates], dtype=torch.float64)
        c, s = (torch.tensor([float(own[k] == role) for k in own], dtype=torch.float64) for role in ROLES)
        norms = [float((mask @ dots @ mask).clamp(min=0).sqrt()) for mask in (c, s)]
        angle = 0.0
        if all(norms):
            angle = float(torch.acos((c @ dots @ s / (norms[0] * norms[1])).clamp(-1, 1)))
        weights = [1 - self.t, self.t]
        if all(norms) and 1e-6 < angle < torch.pi - 1e-6:
            length = (1 - self.t) * norms[0] + self.t * norms[1]
            if self.norm == "sum":
                length = float(((c + s) @ dots @ (c + s)).clamp(min=0).sqrt())
            sine = torch.sin(torch.tensor(angle, dtype=torch.float64))
            turned = torch.sin(torch.tensor([(1 - self.t) * angle, self.t * angle], dtype=torch.float64)) / sine
            weights = [length * float(part) / norm for part, norm in zip(turned, norms, strict=True)]
        by_role = dict(zip(ROLES, weights, strict=True))
        return Factors.total([Factors(each.down, each.up * by_role[own[k]]) for k, each in enumerate(updates)])


def inner(left: "Factors", right: "Factors") -> float:
    """Return the inner product of two updates as vectors, computed from their factors."""
    return float(((left.up.double().mT @ right.up.double()) * (left.down.double() @ right.down.double().mT)).sum())
