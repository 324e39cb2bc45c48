"""The base model without any adapter: the floor of every table."""

from dataclasses import dataclass

from lorabench.method import Method


@dataclass(frozen=True, kw_only=True)
class Base(Method):
    def gain(self, site: str, progress: float) -> tuple[float, ...]:
        return (0.0, 0.0)
