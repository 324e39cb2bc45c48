"""The best LoRA of a lower rank, and how far it is from the one it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lorabench.base import UserError
from lorabench.lora.factors import Factors

if TYPE_CHECKING:
    from lorabench.lora.adapter import Adapter

SMALL = 4  # times the rank: up to this size the whole SVD is computed
EXTRA, ITERATIONS = 16, 4  # subspace iteration: extra vectors, and passes over the update


@dataclass(frozen=True)
class CompressionError:
    """Relative errors ||update - compressed||_F / ||update||_F.

    layers: of each layer, UNet layers by module path and text layers with their encoder in front.
    overall: of all updates as one vector.
    """

    layers: dict[str, float]
    overall: float

    def __str__(self) -> str:
        worst = max(self.layers, key=lambda layer: self.layers[layer])
        return f"relative error {self.overall:.2%}, at most {self.layers[worst]:.2%} ({worst})"


def compress(adapter: Adapter, rank: int) -> tuple[Adapter, CompressionError]:
    """Return the nearest update of at most this rank in every layer (Eckart and Young 1936), balanced.

    Layers of no higher rank are kept. Balanced factors U sqrt(s) and sqrt(s) V^T suit half precision.
    """
    if rank < 1:
        raise UserError(f"task.rank={rank} must be at least 1; use task.rank=8")
    lost: dict[str, tuple[float, float]] = {}

    def all_nearest(layers: Mapping[str, Factors]) -> dict[str, Factors]:
        found = {}
        for layer, factors in layers.items():
            found[layer], *lost[layer] = truncated(factors, rank)
        return found

    compressed = adapter.replaced(all_nearest(adapter), all_nearest(adapter.text))
    errors = {layer: relative(*each) for layer, each in lost.items()}
    return compressed, CompressionError(errors, relative(*(sum(each[i] for each in lost.values()) for i in (0, 1))))


def relative(tail: float, whole: float) -> float:
    return (tail / whole) ** 0.5 if whole > 0 else 0.0


def truncated(factors: Factors, rank: int) -> tuple[Factors, float, float]:
    """Return the nearest factors of a rank, balanced, and squared norms of what is cut off and of all.

    With up = P S and down^T = Q T (QR), the SVD of the small S T^T is that of the update, whose dense form is never
    computed. In fp64, as the smallest singular values of a merge are far below the largest.
    """
    up, down = (factor.detach().to("cpu", torch.float64) for factor in (factors.up, factors.down.mT))
    if factors.rank <= rank:
        return factors, 0.0, float(((up.mT @ up) * (down.mT @ down)).sum())  # ||update||^2 without an SVD
    left, right = torch.linalg.qr(up), torch.linalg.qr(down)
    u, s, vt = torch.linalg.svd(left.R @ right.R.mT, full_matrices=False)
    squares, root = s.square(), s[:rank].sqrt()
    kept = Factors(
        (root[:, None] * (vt[:rank] @ right.Q.mT)).to(factors.down), (left.Q @ u[:, :rank] * root).to(factors.up)
    )
    return kept, float(squares[rank:].sum()), float(squares.sum())


def nearest(update: Tensor, rank: int) -> tuple[Factors, float, float]:
    """Return the nearest factors of a dense update, balanced, and squared norms of what is cut off and of all.

    For a rank far below the size, subspace iteration (Halko et al., SIAM Review 2011) finds the leading singular
    vectors several times faster than a whole SVD. Its error is the exact distance of the factors that it returns.
    """
    dense = update.float()
    if SMALL * rank >= min(dense.shape):
        u, s, vt = torch.linalg.svd(dense, full_matrices=False)
        squares, root = s.double().square(), s[:rank].sqrt()
        factors = Factors((root[:, None] * vt[:rank]).cpu(), (u[:, :rank] * root).cpu())
        return factors, float(squares[rank:].sum()), float(squares.sum())
    rng = torch.Generator().manual_seed(0)
    q = torch.randn(dense.shape[1], rank + EXTRA, generator=rng).to(dense)
    for _ in range(ITERATIONS):
        q = torch.linalg.qr(dense.mT @ (dense @ q)).Q
    u, s, vt = torch.linalg.svd(dense @ q, full_matrices=False)
    root, total = s[:rank].sqrt(), float(dense.double().square().sum())
    factors = Factors((root[:, None] * (vt[:rank] @ q.mT)).cpu(), (u[:, :rank] * root).cpu())
    return factors, max(total - float(s[:rank].double().square().sum()), 0.0), total
