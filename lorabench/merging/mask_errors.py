"""Minimum error of approximating a low-rank update dW = U D with a mask that has k non-zero entries of any value.

Errors are ||dW - masked|| / ||dW|| (Frobenius) in float64, for all k from 1 to the rank at once. They are computed from
the r x r core or Gram matrices of the factors, without the dense update. docs/theorem1.md explains the comparison.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lorabench.lora.adapter import Factors

EXACT_RANK = 18  # up to this rank, all 2^r subsets of raw rank-one terms are tried; the memory doubles with each rank
SINGULAR = 1e-12  # pivot of a unit-diagonal Gram matrix below which a term is in the span of the chosen ones


def svd_rank_errors(factors: Factors) -> Tensor:
    """Return the errors [r] of a rank mask in the SVD basis. Terms are orthogonal, so the k largest are best."""
    return tail_errors(factors.singular_values().square(), factors.rank)


def out_errors(factors: Factors) -> Tensor:
    """Return the errors [min(r, out)] of an output mask. Rows are orthogonal, so the k longest are best."""
    _, right = triangles(factors)
    rows = (factors.up.double() @ right.mT).square().sum(1)
    return tail_errors(rows.sort(descending=True).values, min(factors.rank, len(rows)))


def raw_rank_errors(factors: Factors) -> Tensor:
    """Return the errors [r] of a rank mask on the trained factors: the best k of r terms u_i d_i with the best weights.

    Exact up to EXACT_RANK. Above, each next term is the one that reduces the error most, which gives an upper bound.
    """
    gram, total = term_gram(factors)
    if total == 0:
        return gram.new_zeros(factors.rank)
    best = exhaustive(gram) if factors.rank <= EXACT_RANK else greedy(gram)
    # A larger subset is never worse, except for rounding of nearly dependent terms.
    return (best[1:] / total).clamp(min=0).cummin(0).values.sqrt()


def triangles(factors: Factors) -> tuple[Tensor, Tensor]:
    """Return the R factors of U and of D^T: dW = Q_U (R_U R_D^T) Q_D^T with orthonormal Q."""
    up, down = factors.up.detach().double(), factors.down.detach().double()
    return torch.linalg.qr(up, mode="r").R, torch.linalg.qr(down.mT, mode="r").R


def tail_errors(energies: Tensor, count: int) -> Tensor:
    """Return the relative errors of keeping the first 1, 2, ... `count` orthogonal parts, given sorted energies."""
    left = energies.flip(0).cumsum(0).flip(0)  # left[k]: energy after the first k
    if left[0] == 0:
        return left.new_zeros(count)
    missing = torch.cat([left[1:], left.new_zeros(count)])[:count]
    return (missing / left[0]).sqrt()


def term_gram(factors: Factors) -> tuple[Tensor, Tensor]:
    """Return inner products and the norm of dW.

    <u_i d_i, u_j d_j> = (U^T U)_ij (D D^T)_ij.

    Returns:
        Inner products of the r normalized terms u_i d_i and, last, of dW; and ||dW||^2.
    """
    up, down = factors.up.detach().double(), factors.down.detach().double()
    terms = (up.mT @ up) * (down @ down.mT)
    length = terms.diagonal().sqrt()
    scale = torch.where(length > 0, 1 / length, 0.0)
    sums = terms.sum(1) * scale
    left, right = triangles(factors)
    total = (left @ right.mT).square().sum()
    corner = torch.cat([sums, total[None]])[None]
    return torch.cat([torch.cat([terms * scale * scale[:, None], sums[:, None]], 1), corner]), total


def exhaustive(gram: Tensor) -> Tensor:
    """Return the minimum squared distances [r + 1] of dW to the span of k terms, k = 0..r, over all subsets.

    For each term, every matrix of the stack is split in two: without the term (its row and column are dropped), and
    with it (its explained part is subtracted from the rest). In the end, one number per subset remains: the residual of
    dW. As the matrices shrink, this needs about six numbers per subset.
    """
    r = len(gram) - 1
    stack, taken = gram[None], torch.zeros(1, dtype=torch.long)
    for _ in range(r):
        rest = stack[:, 1:, 1:]
        stack = torch.cat([rest, rest - explained(stack, 0)[:, 1:, 1:]])
        taken = torch.cat([taken, taken + 1])
    best = gram.new_full((r + 1,), float("inf"))
    return best.scatter_reduce(0, taken, stack[:, 0, 0], "amin")


def greedy(gram: Tensor) -> Tensor:
    """Return distances [r + 1] as `exhaustive`, but for a subset that grows by the term that explains most of dW."""
    residuals, gram = [gram[-1, -1]], gram.clone()
    for _ in range(len(gram) - 1):
        pivots, towards = gram.diagonal()[:-1], gram[:-1, -1]
        scale = torch.where(pivots > SINGULAR, towards.square() / pivots, -1.0)
        gram = gram - explained(gram[None], int(scale.argmax()))[0]
        residuals.append(gram[-1, -1])
    return torch.stack(residuals)


def explained(stack: Tensor, term: int) -> Tensor:
    """Return the part of all inner products that a term explains; zero if the chosen terms span it."""
    pivot = stack[:, term, term]
    inverse = torch.where(pivot > SINGULAR, 1 / pivot, 0.0)
    return inverse[:, None, None] * stack[:, :, term, None] * stack[:, term, None, :]
