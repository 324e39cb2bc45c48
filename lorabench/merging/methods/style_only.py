"""The style LoRA alone: what the style looks like on any object of the class."""

from dataclasses import dataclass

from lorabench.data.pairs import Role
from lorabench.merging.method import Method
from lorabench.models.layer import Layer


@dataclass(frozen=True, kw_only=True)
class StyleOnly(Method):
    def scale(self, layer: Layer, progress: float) -> tuple[float, ...]:
        return tuple(float(role == "style") for role in layer.roles)

    def uses(self, role: Role) -> bool:
        return role == "style"
