"""The direct merge at a lower rank: the nearest update of that rank in every layer (Eckart and Young 1936).

    dW_m = argmin_{rank X <= r} || sum_k dW_k - X ||_F

Against the direct merge: singular values beyond `rank` are cut off, and the error of that is told. It is what tools do
that must not let a merged file grow (peft's combination type `svd`, kohya's svd_merge_lora).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabench.merging.method import Method
from lorabench.merging.methods.ties import check_rank
from lorabench.models.layer import Layer

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.adapter import Factors


@dataclass(frozen=True, kw_only=True)
class SVD(Method):
    """rank: of the file; None is the greatest of the LoRAs' ranks, as in peft."""

    rank: int | None

    def __post_init__(self) -> None:
        check_rank(self.rank)

    def rank_at(self, layer: Layer) -> int:
        return self.rank or max(layer.ranks)

    def combine(self, updates: Sequence["Factors"], layer: Layer, seed: int) -> "Tensor":
        total = [each.up.float() @ each.down.float() for each in updates]
        return sum(total[1:], total[0])
