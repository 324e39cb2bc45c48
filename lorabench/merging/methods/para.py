"""The merge of PaRa (Chen et al., ICLR 2025, arXiv 2406.05641): remove the subspaces of all concepts together.

    Q = QR([Q_c | Q_s]),    W' = W - Q Q^T W        (Q_k: basis of what adapter k removes)

The sum of the changes would remove twice what both remove. The formula is that of CRAFT-LoRA (arXiv 2602.18936,
equations 3 and 4); PaRa's own text describes a merge without training and could not be read further.

The adapters are those of `method/training=para`, at scale 1: a rank reduction has no half strength.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorabench.merging.layerwise import LayerwiseMerge
from lorabench.models.layer import Layer

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.adapter import Factors


@dataclass(frozen=True, kw_only=True)
class ParaMerge(LayerwiseMerge):
    """One basis of all subspaces."""

    training: ClassVar[str | None] = "para"

    def combine(self, updates: Sequence[Factors], layer: Layer, seed: int, moments: Tensor | None) -> Factors:
        from lorabench.lora.projection import joined_reduction

        return joined_reduction(updates)
