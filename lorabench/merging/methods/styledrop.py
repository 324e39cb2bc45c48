"""StyleDrop (Sohn et al., NeurIPS 2023, arXiv 2306.00983) as the field runs it on SDXL: the style by its LoRA, the
content by text.

    e_s(x, p):   the style LoRA alone, under a prompt that names the subject by its class word ("a dog in szn style")

Against the direct merge: scale 0 for content LoRAs, and a prompt without the subject's identifier, so it draws some
dog and
not this one; the floor in content of a method that has the style. It learns nothing beside the style LoRA.

Two-term guidance (`two_terms`, ablation=two_term_guidance) is the publication's, whose logits become predictions:

    eps = e(x, "") + lambda_b (e(x, p) - e(x, "")) + lambda_a (e_s(x, p) - e(x, p)),   lambda_a = two_terms lambda_b

with e the UNet without any LoRA and lambda_b the guidance of all methods (text encoders keep the style's part in every
branch, as the prompt is encoded once).

StyleDrop tunes adapters of a masked transformer (Muse) and trains a second round on its own best images; neither is
repeated here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lorabench.data.pairs import Role
from lorabench.merging.method import Method
from lorabench.models.layer import Layer
from lorabench.sampling.branches import Branch


@dataclass(frozen=True, kw_only=True)
class StyleDrop(Method):
    """two_terms: lambda_a / lambda_b; None is classifier-free guidance with the LoRA in both terms."""

    exports: ClassVar[bool] = False

    two_terms: float | None

    def scale(self, layer: Layer, progress: float) -> tuple[float, ...]:
        return tuple(float(role == "style") for role in layer.roles)

    def guidance(self, scale: float, roles: Sequence[Role]) -> list[Branch]:
        on, off = (1.0,) * len(roles), (0.0,) * len(roles)  # beside `scale`
        if self.two_terms is None:
            return [Branch(1 - scale, on, None), Branch(scale, on, "styled")]
        own = self.two_terms * scale
        return [Branch(1 - scale, off, None), Branch(scale - own, off, "styled"), Branch(own, on, "styled")]
