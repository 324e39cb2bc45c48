"""SVD: the direct merge, reduced to a lower rank (Eckart and Young 1936).

    dW_m = argmin_{rank X <= r} || sum_k dW_k - X ||_F

Singular values after the first `rank` are cut off, and the error is reported. Tools use this to limit the size of
merged files (peft's combination type `svd`, kohya's svd_merge_lora).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabench.config.settings import setting
from lorabench.merging.layerwise import LayerwiseMerge
from lorabench.models.layer import Layer

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.adapter import Factors


@dataclass(frozen=True, kw_only=True)
class SVD(LayerwiseMerge):
    """A sum of lower rank.

    Args:
        rank: Rank of the file. None: the highest rank of the adapters, as in peft.
    """

    rank: int | None = setting(least=1)

    def file_rank(self, layer: Layer) -> int:
        return self.rank or max(layer.ranks)

    def combine(self, updates: Sequence["Factors"], layer: Layer, seed: int, moments: "Tensor | None") -> "Factors":
        from lorabench.lora.factors import Factors

        return Factors.total(updates)  # cut to `file_rank` from the factors, without the dense sum
