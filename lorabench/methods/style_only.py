"""The style LoRA alone: what the style looks like on any object of the class."""

from dataclasses import dataclass

from lorabench.method import Method


@dataclass(frozen=True, kw_only=True)
class StyleOnly(Method):
    def gain(self, site: str, progress: float) -> tuple[float, ...]:
        return (0.0, 1.0)
