"""EST-LoRA ("Subject or Style", arXiv 2508.02165): K-LoRA's choice by energies, and by how far the style is from plain.

    dW_m = dW_s  if  E_c < (alpha p + 1 - D) E_s (sum E_c / sum E_s),  else dW_c
    E_k = ||dW_k||_F^2 = sum of (U_k^T U_k) * (D_k D_k^T), without the dense update
    D: the style's discrepancy in [0, 1]; the more the style differs from photographs, the later it is chosen

Against the direct merge: scales of 0 and 1 by layer and step, so no single file does it. The paper's code is not to
be had;
the balance sum E_c / sum E_s and D as a number (0.5) are those of SD.Next's account of it. Of several LoRAs of a role E
is that of their sum; a layer that only one role adapts belongs to it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorabench.base import UserError
from lorabench.data.pairs import ROLES, Role
from lorabench.merging.method import Method
from lorabench.models.layer import Layer
from lorabench.sampling.branches import Scale

if TYPE_CHECKING:
    from lorabench.lora.adapter import LoRA


@dataclass(frozen=True, kw_only=True)
class ESTLoRA(Method):
    """alpha: how much the threshold grows over the steps.  discrepancy: D."""

    exports: ClassVar[bool] = False

    alpha: float
    discrepancy: float

    def __post_init__(self) -> None:
        if not 0 <= self.discrepancy <= 1:
            raise UserError(f"method.discrepancy={self.discrepancy:g} lies outside 0 to 1; type method.discrepancy=0.5")

    def strengths(self, loras: Sequence["LoRA"], layers: Mapping[str, Layer], steps: int) -> Scale:
        energies = {name: {role: energy(loras, layer, role) for role in ROLES} for name, layer in layers.items()}
        content, style = (sum(each[role] for each in energies.values()) for role in ROLES)
        balance = content / style if content and style else 1.0

        def scale(name: str, progress: float) -> tuple[float, ...]:
            threshold = (self.alpha * progress + 1 - self.discrepancy) * balance
            own = energies[name]
            chosen = "content" if own["content"] and own["content"] >= threshold * own["style"] else "style"
            return tuple(float(role == chosen) for role in layers[name].roles)

        return scale


def energy(loras: Sequence["LoRA"], layer: Layer, role: Role) -> float:
    """||dW||_F^2 of a role at a layer: of the stacked factors, so that the dense update is never formed."""
    import torch

    found = [loras[index][layer.name] for index in layer.of(role) if layer.name in loras[index]]
    if not found:
        return 0.0
    up = torch.cat([each.up.double() for each in found], dim=1)
    down = torch.cat([each.down.double() for each in found])
    return float(((up.mT @ up) * (down @ down.mT)).sum())
