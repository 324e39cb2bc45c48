"""The nearest LoRA of a lower rank, and its error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorabench.base import UserError
from lorabench.lora.factors import Factors

SMALL = 4  # complete SVD if the size is at most this times the rank, else subspace iteration
ROUNDING = 1e-12  # share of the squared norm that is rounding in float64
EXTRA, ITERATIONS = 16, 4  # subspace iteration: extra vectors, and passes over the update


@dataclass(frozen=True)
class CompressionError:
    """Relative errors ||update - compressed||_F / ||update||_F.

    Args:
        layers: Error of each layer. Names of text layers start with the encoder.
        overall: Error of all updates as one vector.
    """

    layers: dict[str, float]
    overall: float

    def __str__(self) -> str:
        worst = max(self.layers, key=lambda layer: self.layers[layer])
        return f"relative error {self.overall:.2%}, at most {self.layers[worst]:.2%} ({worst})"


def compress(
    parts: Sequence[Mapping[str, Factors]], rank: int | None, keep: float = 1.0
) -> tuple[list[dict[str, Factors]], CompressionError]:
    """Return the nearest factors of a lower rank in every layer (Eckart and Young 1936), and their errors.

    Layers with no higher rank are kept. Factors are balanced, U sqrt(s) and sqrt(s) V^T, which suits half precision.

    Args:
        parts: Factors by layer.
        rank: Highest rank of a layer; None is the least rank of each layer that keeps the share `keep`.
        keep: Share of the squared norm of each layer's update.

    Raises:
        UserError: If the rank is less than 1.
    """
    if rank is not None and rank < 1:
        raise UserError(f"task.rank={rank} must be at least 1; use task.rank=8")
    lost: dict[str, tuple[float, float]] = {}

    def all_nearest(layers: Mapping[str, Factors]) -> dict[str, Factors]:
        found = {}
        for layer, factors in layers.items():
            found[layer], tail, whole = truncated(factors, rank, keep)
            lost[layer] = tail, whole
        return found

    compressed = [all_nearest(part) for part in parts]
    errors = {layer: relative(*each) for layer, each in lost.items()}
    return compressed, CompressionError(errors, relative(*(sum(each[i] for each in lost.values()) for i in (0, 1))))


def relative(tail: float, whole: float) -> float:
    """Return the square root of a ratio of squared norms; 0 if both are zero."""
    return (tail / whole) ** 0.5 if whole > 0 else 0.0


def truncated(factors: Factors, rank: int | None, keep: float = 1.0) -> tuple[Factors, float, float]:
    """Return the nearest balanced factors of a rank, and the squared norms of the discarded part and of the update.

    Without a rank, it is the least one that keeps the share `keep` of the squared norm.

    With up = P S and down^T = Q T (QR), the SVD of the small matrix S T^T gives that of the update, so the dense update
    is not needed. Computed in fp64, because the smallest singular values of a merge are far below the largest one.
    """
    up, down = (factor.detach().to("cpu", torch.float64) for factor in (factors.up, factors.down.mT))
    if rank is not None and factors.rank <= rank:
        return factors, 0.0, float(((up.mT @ up) * (down.mT @ down)).sum())  # ||update||^2 without an SVD
    left, right = torch.linalg.qr(up), torch.linalg.qr(down)
    u, s, vt = torch.linalg.svd(left.R @ right.R.mT, full_matrices=False)
    squares = s.square()
    if rank is None:
        rank = least_rank(squares, keep)
    root = s[:rank].sqrt()
    kept = Factors(
        (root[:, None] * (vt[:rank] @ right.Q.mT)).to(factors.down), (left.Q @ u[:, :rank] * root).to(factors.up)
    )
    return kept, float(squares[rank:].sum()), float(squares.sum())


def least_rank(squares: Tensor, keep: float) -> int:
    """Return how many of the largest squared singular values, which descend, are the share `keep` of all; at least 1.

    >>> least_rank(torch.tensor([8.0, 1.0, 1.0]), 0.9)
    2
    """
    total = float(squares.sum())
    tails = total - squares.cumsum(0)  # lost at rank 1, 2, ...
    allowed = (1 - keep + ROUNDING) * total
    return min(int((tails > allowed).sum()) + 1, len(squares))


def nearest(update: Tensor, rank: int) -> tuple[Factors, float, float]:
    """Return the nearest balanced factors of a dense update, and squared norms of the discarded part and the update.

    For a rank far below the size, subspace iteration (Halko et al., SIAM Review 2011) finds the leading singular
    vectors several times faster than a complete SVD. The returned error is that of the returned factors.
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
