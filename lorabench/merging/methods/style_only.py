"""The style LoRA alone: what the style looks like on any object of the class."""

from dataclasses import dataclass

from lorabench.merging.method import Method
from lorabench.models.layer import Site


@dataclass(frozen=True, kw_only=True)
class StyleOnly(Method):
    def gain(self, site: Site, progress: float) -> tuple[float, ...]:
        return tuple(float(role == "style") for role in site.roles)
