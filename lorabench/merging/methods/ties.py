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

The direct merge has density 1 and sum. The merged update is dense, so the file has its nearest factors of `rank`, and
the error is reported. peft merges A and B separately, which is a different merge (`peft_ties`). The sum keeps the
strength of every LoRA; the mean of elected entries keeps it only for entries of a single LoRA. Pruning is that of peft;
random draws are seeded by pair, layer and adapter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorabench.base import UserError
from lorabench.config.settings import setting
from lorabench.merging.layerwise import LayerwiseMerge
from lorabench.models.layer import Layer

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from lorabench.lora.adapter import Factors

SAMPLE = 2**14  # entries whose order bounds a threshold


@dataclass(frozen=True, kw_only=True)
class Ties(LayerwiseMerge):
    """Pruned updates, summed or elected.

    Args:
        prune: Rule of pruning, see above.
        merge: Rule of merging, see above.
        density: Share of entries to keep.
        weight: Scale w.
        sign: Election of signs, "total" or "frequency".
        epsilon: With prune=ranked, the difference between the largest and the smallest probability.
        gamma: With prune=band, the share of largest entries to remove.
        rank: Rank of the file. None: the sum of the adapters' ranks.
    """

    dense: ClassVar[bool] = True

    prune: str = setting(options=("magnitude", "random", "ranked", "band"))
    merge: str = setting(options=("elect", "sum"))
    density: float = setting(above=0, most=1)
    weight: float
    sign: str = setting(options=("total", "frequency"))
    epsilon: float
    gamma: float
    rank: int | None = setting(least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prune == "ranked" and not 0 <= self.epsilon / 2 <= (most := min(self.density, 1 - self.density)):
            raise UserError(
                f"method.epsilon={self.epsilon:g} must keep all probabilities between 0 and 1; "
                f"use method.epsilon={2 * most:g}"
            )
        if self.prune == "band" and not 0 <= self.gamma <= 1 - self.density:
            raise UserError(
                f"method.gamma={self.gamma:g} must be between 0 and 1 - method.density; "
                f"use method.gamma={1 - self.density:g}"
            )

    def file_rank(self, layer: Layer) -> int:
        return self.rank or sum(layer.ranks)

    def combine(self, updates: Sequence["Factors"], layer: Layer, seed: int, moments: "Tensor | None") -> "Tensor":
        import torch

        from lorabench.base import seed_of

        pruned = []
        for k, each in enumerate(updates):
            draw = torch.Generator().manual_seed(seed_of("prune", seed, layer.name, k))
            pruned.append(self.pruned(each.up.float() @ each.down.float(), draw))
        return self.weight * (total(pruned) if self.merge == "sum" else elected(pruned, self.sign))

    def pruned(self, update: "Tensor", draw: "Generator") -> "Tensor":
        """Return the update [out, in] with some entries set to 0."""
        import torch

        if self.prune == "magnitude":
            return keep_largest(update, self.density)
        if self.prune == "band":
            kept = keep_largest(update, self.density + self.gamma)
            return kept - keep_largest(update, self.gamma) if self.gamma else kept
        keep = torch.full_like(update, self.density)
        if self.prune == "ranked":
            order = update.abs().argsort(dim=1).argsort(dim=1) / max(update.shape[1] - 1, 1)
            keep = self.density - self.epsilon / 2 + self.epsilon * order
        drawn = torch.rand(update.shape, generator=draw).to(update)  # on the CPU, so that devices draw alike
        return torch.where(drawn < keep, update / keep, 0.0)


def total(updates: "Sequence[Tensor]") -> "Tensor":
    """Return the sum of updates."""
    return sum(updates[1:], updates[0])


def elected(updates: "Sequence[Tensor]", sign: str) -> "Tensor":
    """Return the mean, at each entry, of the updates with the elected sign, as peft's `disjoint_merge` does.

    It adds one update at a time, because stacked updates take twice the time.

    Args:
        updates: [out, in] each.
        sign: "total" elects the sign of the sum, "frequency" that of most updates; a tie is positive.
    """
    import torch

    votes = total(updates if sign == "total" else [each.sign() for each in updates])
    chosen = torch.ones_like(votes).copysign_(votes)
    kept = [(each * chosen).clamp_(min=0) for each in updates]
    count = total([each.sign() for each in kept]).clamp_(min=1)
    return total(kept).div_(count).mul_(chosen)


def keep_largest(update: "Tensor", density: float) -> "Tensor":
    """Return the update with all but its share `density` of largest |entries| set to 0, as peft's `prune` does.

    It uses a threshold instead of sorting all entries, which is several times faster. Entries equal to the threshold
    are all kept, or all set to 0.
    """
    import torch

    sizes = update.abs()
    count = int(density * sizes.numel())
    if count >= sizes.numel():
        return update
    if not count:
        return torch.zeros_like(update)
    threshold = largest(sizes.flatten(), count)
    below = torch.nextafter(threshold, torch.zeros_like(threshold))
    return torch.nn.functional.hardshrink(update, float(below)) if threshold else update


def largest(sizes: "Tensor", count: int) -> "Tensor":
    """Return the element of `sizes` with this rank; 1 is the largest.

    A sample gives bounds, so that only few numbers are sorted; if the bounds are wrong, all are.
    """
    step = max(len(sizes) // SAMPLE, 1)
    sample = sizes[::step].sort(descending=True).values
    place, spread = count / len(sizes) * len(sample), 4 * len(sample) ** 0.5
    low, high = (sample[min(max(int(place + side * spread), 0), len(sample) - 1)] for side in (1, -1))
    above = int((sizes > high).count_nonzero())
    between = sizes[(sizes >= low) & (sizes <= high)]
    if above < count <= above + len(between):
        sizes, count = between, count - above
    return sizes.kthvalue(len(sizes) - count + 1).values
