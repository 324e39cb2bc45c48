"""The content LoRA alone: what the subject looks like when no style is asked of it."""

from dataclasses import dataclass

from lorabench.data.pairs import Role
from lorabench.merging.method import Method
from lorabench.models.layer import Layer


@dataclass(frozen=True, kw_only=True)
class ContentOnly(Method):
    def scale(self, layer: Layer, progress: float) -> tuple[float, ...]:
        return tuple(float(role == "content") for role in layer.roles)

    def uses(self, role: Role) -> bool:
        return role == "content"
