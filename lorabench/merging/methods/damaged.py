"""The direct merge with known damage: a share of each update's energy is removed at random.

    dW_m = sum_k dW_k diag(i_k),   ||dW_k diag(i_k)||^2 = (1 - removed) ||dW_k||^2   in every layer of the denoiser

i_k is 1 or 0 for whole input columns, in a random order per pair, layer and adapter; one column is scaled so that the
share is exact. It is not a published method: task=sensitivity uses it to find out which differences the scores
detect.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabench.config.settings import setting
from lorabench.merging.masked import MaskedSum
from lorabench.models.layer import Layer

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.adapter import Factors
    from lorabench.lora.layer import Masks


@dataclass(frozen=True, kw_only=True)
class Damaged(MaskedSum):
    """The sum without a random part of each update.

    Args:
        removed: Share of the squared Frobenius norm that is removed.
    """

    removed: float = setting(least=0, most=1)

    def masks(
        self, updates: Sequence["Factors"], layer: Layer, seed: int, moments: "Tensor | None"
    ) -> "tuple[Masks, ...] | None":
        from lorabench.base import seed_of
        from lorabench.lora.layer import Masks

        return tuple(
            Masks(i=kept_columns(each, self.removed, seed_of("damage", seed, layer.name, k)))
            for k, each in enumerate(updates)
        )


def kept_columns(update: "Factors", share: float, seed: int) -> "Tensor":
    """Return the scale [in] of each input column of an update that removes a share of its energy."""
    import torch

    down, up = update.down.double(), update.up.double()
    energy = ((up.T @ up) @ down * down).sum(dim=0).clamp(min=0)  # ||U d_j||^2 of each column
    order = torch.randperm(len(energy), generator=torch.Generator().manual_seed(seed))
    drawn = energy[order]
    left = share * energy.sum() - (drawn.cumsum(0) - drawn)  # energy still to remove when a column's turn comes
    removed = torch.minimum(left.clamp(min=0), drawn)
    kept = torch.ones_like(drawn)
    some = drawn > 0
    kept[some] = (1 - removed[some] / drawn[some]).clamp(min=0).sqrt()
    scales = torch.empty_like(kept)
    scales[order] = kept
    return scales.to(update.down.dtype)
