"""The content LoRA alone: what the subject looks like when no style is asked of it."""

from dataclasses import dataclass

from lorabench.method import Method


@dataclass(frozen=True, kw_only=True)
class ContentOnly(Method):
    def gain(self, site: str, progress: float) -> tuple[float, ...]:
        return (1.0, 0.0)
