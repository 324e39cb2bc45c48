"""Custom weights: a sum with scales chosen by the user, by role and optionally by module.

    dW_m = w_c dW_c + w_s dW_s,   w by role or by module path

Practitioners use it with w_s < w_c if the style dominates the subject. The layer probe changes the scales of single
modules. The lower bounds of every table are this merge with scales 0 (`base`, `content_only`, `style_only`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from lorabench.base import UserError
from lorabench.data.concepts import ROLES, Role
from lorabench.merging.masked import MaskedSum
from lorabench.models.layer import Layer


@dataclass(frozen=True, kw_only=True)
class CustomWeights(MaskedSum):
    """Scales by role and module.

    Args:
        content: Scale of content adapters.
        style: Scale of style adapters.
        blocks: {module path: {content: w, style: w}} for all layers of a module or group.
    """

    content: float
    style: float
    blocks: dict[str, dict[str, float]] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for block, weights in (self.blocks or {}).items():
            if not weights or not set(weights) <= set(ROLES):
                raise UserError(
                    f"method.blocks.{block} must have content: or style: weights; "
                    f"use method.blocks={{{block}: {{content: 0.5}}}}"
                )

    def uses(self, role: Role) -> bool:
        return any([getattr(self, role), *(own.get(role) for own in (self.blocks or {}).values())])

    def check(self, layers: Mapping[str, Layer]) -> None:
        for block in self.blocks or {}:
            if not any(layer.inside(block) for layer in layers.values()):
                raise UserError(
                    f"method.blocks.{block} must be a module with adapted layers; "
                    "use method.blocks={<module path>: {style: 0.5}}"
                )

    def scales(self, layer: Layer) -> tuple[float, ...]:
        weights: Mapping[str, float] = {"content": self.content, "style": self.style}
        for block, own in (self.blocks or {}).items():
            if layer.inside(block):
                weights = {**weights, **own}
        return tuple(weights[role] for role in layer.roles)
