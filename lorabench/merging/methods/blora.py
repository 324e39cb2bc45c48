"""B-LoRA: one block of the denoiser for the content, another one for the style.

    dW_m = alpha_c dW_c  in W4 (`content_block`),   alpha_s dW_s  in W5 (`style_block`),   else 0

The merge takes block W4 of the content LoRA and block W5 of the style LoRA. The LoRAs are trained in these two blocks
only, both at once (`method/training=blora`). The released code multiplies both factors by alpha, so that alpha counts
twice (`squared`). Images have the prompt of all methods, with the class word next to the identifier.

A block may be several modules. Those of SDXL are the preset; other models need blocks of their own, such as the sets of
conf/layer_sets, which are named by their source: `content_block=splitflux style_block=splitflux`.

Source: Frenkel et al., ECCV 2024, arXiv 2403.14572.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorabench.base import UserError
from lorabench.data.concepts import ROLES, Role
from lorabench.merging.masked import MaskedSum
from lorabench.models.layer import Layer, modules
from lorabench.models.layer_sets import role_modules


@dataclass(frozen=True, kw_only=True)
class BLoRA(MaskedSum):
    """One block per role.

    Args:
        content_block: Module or group of the content block, W4 in the paper, several, or a set of conf/layer_sets.
        style_block: Module or group of the style block, W5 in the paper, several, or a set of conf/layer_sets.
        content: Scale alpha_c.
        style: Scale alpha_s.
        squared: Apply each scale twice.
    """

    content_block: Any
    style_block: Any
    content: float
    style: float
    squared: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        for role in ROLES:
            key = f"{role}_block"
            object.__setattr__(self, key, role_modules(f"method.{key}", getattr(self, key), role))

    def check(self, layers: Mapping[str, Layer]) -> None:
        roles: dict[Role, None] = dict.fromkeys(role for layer in layers.values() for role in layer.roles)
        for role in roles:
            blocks = self.alphas[role][0]
            inside = [layer for layer in layers.values() if any(map(layer.inside, blocks))]
            if not any(layer.ranks[k] for layer in inside for k in layer.of(role)):
                raise UserError(
                    f"method.{role}_block={','.join(blocks)} must have a layer that a {role} LoRA adapts; "
                    f"use method.{role}_block=<module path>"
                )

    @property
    def alphas(self) -> dict[Role, tuple[list[str], float]]:
        """Return the modules of the block and the scale of each role."""
        return {
            "content": (modules(self.content_block), self.content),
            "style": (modules(self.style_block), self.style),
        }

    def scales(self, layer: Layer) -> tuple[float, ...]:
        own, power = self.alphas, 2 if self.squared else 1

        def is_in(role: Role) -> bool:
            return any(map(layer.inside, own[role][0]))

        return tuple(own[role][1] ** power if is_in(role) else 0.0 for role in layer.roles)
