"""TIES-Merging (Yadav et al., NeurIPS 2023, arXiv 2306.01708) and its relatives, on the dense updates of a layer.

    dW_m = w * merge_k( prune(dW_k) )

    merge   elect   the mean, at each entry, of the updates that have the sign of their sum there (or of most of them)
            sum     their sum
    prune   magnitude   keep the share `density` of largest |entries|                                         TIES
            random      keep each entry with probability density, divide by it         DARE, arXiv 2311.03099
            ranked      the same with probabilities density -+ epsilon / 2, rising along the |entries| of a row
                                                                                      DELLA, arXiv 2406.11617
            band        magnitude, without the share `gamma` of largest    Model Breadcrumbs, arXiv 2312.06795

    method             prune       merge
    ties               magnitude   elect
    magnitude_prune    magnitude   sum
    dare_linear        random      sum
    dare_ties          random      elect
    della              ranked      elect
    breadcrumbs        band        sum

Against the direct merge (density 1, sum): new factors. A merged update is dense, so the file holds its nearest
factors of
`rank`, and the error of that is told; peft merges A and B apart instead, which is another merge (`peft_ties`). The sum
keeps the strength of every LoRA, the mean of elected entries does where only one LoRA has an entry. Pruning is peft's;
random draws are seeded by pair, layer and adapter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabench.base import UserError
from lorabench.config.choices import choose
from lorabench.merging.method import Method
from lorabench.models.layer import Layer

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from lorabench.lora.adapter import Factors


def check_pruning(density: float, sign: str) -> None:
    """UserError for a share of entries, or a way to elect signs, that there is not."""
    choose("method.sign", sign, ("total", "frequency"))
    if not 0 < density <= 1:
        raise UserError(f"method.density={density:g} is no share of entries; type method.density=0.5")


def check_rank(rank: int | None) -> None:
    """UserError for a rank that no file has."""
    if rank is not None and rank < 1:
        raise UserError(f"method.rank={rank} is no rank; type method.rank=8")


@dataclass(frozen=True, kw_only=True)
class Ties(Method):
    """prune, merge: see the module.  density: share of entries kept.  weight: w.  sign: total or frequency.

    epsilon: of prune=ranked, between the least and the greatest probability.  gamma: of prune=band.
    rank: of the file; None is the sum of the LoRAs' ranks.
    """

    prune: str
    merge: str
    density: float
    weight: float
    sign: str
    epsilon: float
    gamma: float
    rank: int | None

    def __post_init__(self) -> None:
        choose("method.prune", self.prune, ("magnitude", "random", "ranked", "band"))
        choose("method.merge", self.merge, ("elect", "sum"))
        check_pruning(self.density, self.sign)
        check_rank(self.rank)
        if self.prune == "ranked" and not 0 <= self.epsilon / 2 <= min(self.density, 1 - self.density):
            raise UserError(f"method.epsilon={self.epsilon:g} leads out of 0 to 1 around the density; type less")
        if self.prune == "band" and not 0 <= self.gamma <= 1 - self.density:
            raise UserError(f"method.gamma={self.gamma:g} and the density exceed 1; type less")

    def combine(self, updates: Sequence["Factors"], layer: Layer, seed: int) -> "Tensor":
        import torch
        from peft.utils.merge_utils import calculate_majority_sign_mask, disjoint_merge

        from lorabench.base import seed_of

        pruned = []
        for k, each in enumerate(updates):
            draw = torch.Generator().manual_seed(seed_of("prune", seed, layer.name, k))
            pruned.append(self.pruned(each.up.float() @ each.down.float(), draw))
        stacked = torch.stack(pruned)
        if self.merge == "sum":
            return self.weight * stacked.sum(0)
        return self.weight * disjoint_merge(stacked, calculate_majority_sign_mask(stacked, self.sign))  # pyright: ignore[reportArgumentType]

    def pruned(self, update: "Tensor", draw: "Generator") -> "Tensor":
        """The update [out, in] with entries set to 0."""
        import torch
        from peft.utils.merge_utils import prune

        if self.prune == "magnitude":
            return prune(update, self.density, method="magnitude")
        if self.prune == "band":
            kept = prune(update, self.density + self.gamma, method="magnitude")
            return kept - prune(update, self.gamma, method="magnitude") if self.gamma else kept
        keep = torch.full_like(update, self.density)
        if self.prune == "ranked":
            order = update.abs().argsort(dim=1).argsort(dim=1) / max(update.shape[1] - 1, 1)
            keep = self.density - self.epsilon / 2 + self.epsilon * order
        return torch.where(torch.rand(update.shape, generator=draw) < keep, update / keep, 0.0)
