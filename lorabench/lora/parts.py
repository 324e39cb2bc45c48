"""The parts of an adapter as files have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from lorabench.lora.factors import Factors, Shape, shapes_of
from lorabench.lora.masks import Masks


@dataclass(frozen=True)
class Parts:
    """The attributes of an `Adapter`, with the factors of the denoiser as one of them."""

    factors: Mapping[str, Factors]
    text: Mapping[str, Factors] = field(default_factory=dict)
    tokens: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    masks: Mapping[str, Masks] = field(default_factory=dict)
    backbone: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Return rank, inputs and outputs by layer, including text encoders. Reads no tensors of a file."""
        return shapes_of(self.factors) | shapes_of(self.text)

    @property
    def rank(self) -> int:
        """Return the highest rank of any layer; 0 without factors."""
        return max((shape[0] for shape in self.shapes.values()), default=0)
