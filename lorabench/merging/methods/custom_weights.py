"""Custom weights: the direct merge with strengths chosen by hand, for each role and, where named, for each module.

dW_m = w_c dW_c + w_s dW_s,   w by role or by module path

Against the direct merge: scales. With w_s < w_c this is the usual remedy of practitioners whose style LoRA drowns the
subject; a module's own weights are what a layer probe varies.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from lorabench.base import UserError
from lorabench.data.pairs import ROLES
from lorabench.merging.method import Method
from lorabench.merging.priors import within
from lorabench.models.layer import Layer


@dataclass(frozen=True, kw_only=True)
class CustomWeights(Method):
    """content, style: strength of each.  blocks: {module path: {content: w, style: w}} for all layers in a module."""

    content: float
    style: float
    blocks: dict[str, dict[str, float]]

    def __post_init__(self) -> None:
        for block, weights in self.blocks.items():
            if not weights or not set(weights) <= set(ROLES):
                raise UserError(f"method.blocks.{block} needs content: or style: weights; type {{content: 0.5}}")

    def check(self, layers: Mapping[str, Layer]) -> None:
        for block in self.blocks:
            if not any(within(layer, block) for layer in layers):
                raise UserError(f"method.blocks.{block} is no module with adapted layers; use the path of one")

    def scale(self, layer: Layer, progress: float) -> tuple[float, ...]:
        weights: Mapping[str, float] = {"content": self.content, "style": self.style}
        for block, own in self.blocks.items():
            if within(layer.name, block):
                weights = {**weights, **own}
        return tuple(weights[role] for role in layer.roles)
