"""EST-LoRA ("Subject or Style", arXiv 2508.02165): K-LoRA's choice by energies and by how unusual the style is.

    dW_m = dW_s  if  E_c < (alpha p + 1 - D) E_s (sum E_c / sum E_s),  else dW_c       (p = step / steps)
    E_k = ||dW_k||_F^2 = sum of (U_k^T U_k) * (D_k D_k^T), without the dense update
    D: discrepancy of the style in [0, 1]; the more it differs from photographs, the later it is chosen

The code of the paper is not public; the balance sum E_c / sum E_s and the constant D = 0.5 are those of SD.Next's
account of it. With several adapters of a role E is that of their sum; a layer that only one role adapts belongs to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabench.config.settings import setting
from lorabench.data.concepts import ROLES, Role
from lorabench.models.layer import Layer
from lorabench.sampling.rule import Context, Sampling
from lorabench.sampling.rules.klora import chosen_scales

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.adapter import LoRA


@dataclass(frozen=True, kw_only=True)
class ESTLoRA(Sampling):
    """Choice by energies.

    Args:
        alpha: Growth of the threshold over the steps.
        discrepancy: D.
    """

    alpha: float
    discrepancy: float = setting(least=0, most=1)

    def scales(self, parts: Sequence[LoRA], context: Context) -> Tensor:
        energies: dict[str, dict[Role, float]] = {
            name: {role: energy(parts, layer, role) for role in ROLES} for name, layer in context.layers.items()
        }
        content, style = (sum(each[role] for each in energies.values()) for role in ROLES)
        balance = content / style if content and style else 1.0

        def choice(own: dict[Role, float], progress: float) -> Role:
            threshold = (self.alpha * progress + 1 - self.discrepancy) * balance
            return "content" if own["content"] and own["content"] >= threshold * own["style"] else "style"

        chosen: list[list[Role]] = [
            [choice(own, step / context.steps) for own in energies.values()] for step in range(context.steps)
        ]
        return chosen_scales(chosen, context.roles)


def energy(parts: Sequence[LoRA], layer: Layer, role: Role) -> float:
    """Return ||dW||_F^2 of a role at a layer, from the stacked factors: no dense update is formed."""
    import torch

    found = [parts[index][layer.name] for index in layer.of(role) if layer.name in parts[index]]
    if not found:
        return 0.0
    up = torch.cat([each.up.double() for each in found], dim=1)
    down = torch.cat([each.down.double() for each in found])
    return float(((up.mT @ up) * (down @ down.mT)).sum())
