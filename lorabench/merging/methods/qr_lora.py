"""QR-LoRA (Yang et al., ICCV 2025, arXiv 2507.04599): adapters that differ in one factor alone, in the weight's basis.

    Q R = U_r S_r V_r^T                    (the r greatest singular values of W = U S V^T;  Q [out, r], R [r, in])
    y = (W - Q R) x + Q (R + dR) x         learned: dR alone, from zero
    merged:  W + Q (s_c dR_c + s_s dR_s)

Against the direct merge: LoRAs of their own training (`up` = Q is fixed and the same for all, half the parameters),
and a
strength for each. The merge needs no more than the rank of one LoRA. The released code is for FLUX; its variant that
learns the upper triangle of dR only is not repeated here.
"""

from dataclasses import dataclass
from typing import ClassVar

from lorabench.merging.method import Method, Training
from lorabench.models.layer import Layer


@dataclass(frozen=True, kw_only=True)
class QRLoRA(Method):
    """content, style: s_c, s_s."""

    training: ClassVar[Training] = "core"

    content: float
    style: float

    def scale(self, layer: Layer, progress: float) -> tuple[float, ...]:
        scales = {"content": self.content, "style": self.style}
        return tuple(scales[role] for role in layer.roles)
