"""The base model without any adapter: the floor of every table."""

from dataclasses import dataclass

from lorabench.data.pairs import Role
from lorabench.merging.method import Method
from lorabench.models.layer import Layer


@dataclass(frozen=True, kw_only=True)
class Base(Method):
    def scale(self, layer: Layer, progress: float) -> tuple[float, ...]:
        return (0.0,) * len(layer.ranks)

    def uses(self, role: Role) -> bool:
        return False
