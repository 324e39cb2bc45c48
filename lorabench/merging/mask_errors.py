"""How well a mask with k non-zero entries can approximate a low-rank update dW = U D, whatever the entries are.

Errors are ||dW - masked|| / ||dW|| (Frobenius), for every k from 1 to the rank at once, in float64, and from the r x r
core or Gram matrices of the factors: no dense update is formed. See docs/theorem1.md for what is compared and why.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lorabench.lora.adapter import Factors

EXACT_RANK = 18  # up to here all 2^r subsets of raw rank-one terms are tried; doubles its memory with every rank
SINGULAR = 1e-12  # a pivot of a unit-diagonal Gram matrix below this is a term that the kept ones already span


def svd_rank_errors(factors: Factors) -> Tensor:
    """[r]: a rank mask in the SVD basis.  The terms are orthogonal, so keeping the k largest, unscaled, is best."""
    return tail_errors(factors.singular_values().square(), factors.rank)


def out_errors(factors: Factors) -> Tensor:
    """[min(r, out)]: an output mask.  Rows do not meet each other, so keeping the k longest, unscaled, is best."""
    _, right = triangles(factors)
    rows = (factors.up.double() @ right.mT).square().sum(1)
    return tail_errors(rows.sort(descending=True).values, min(factors.rank, len(rows)))


def raw_rank_errors(factors: Factors) -> Tensor:
    """[r]: a rank mask on the factors as trained; the best k of the r terms u_i d_i, each times the best real number.

    Exact up to EXACT_RANK; above, each next term is the one that lowers the error most, which is an upper bound.
    """
    gram, total = term_gram(factors)
    if total == 0:
        return gram.new_zeros(factors.rank)
    best = exhaustive(gram) if factors.rank <= EXACT_RANK else greedy(gram)
    # A larger subset is never worse; rounding of nearly dependent terms could say otherwise.
    return (best[1:] / total).clamp(min=0).cummin(0).values.sqrt()


def triangles(factors: Factors) -> tuple[Tensor, Tensor]:
    """R factors of U and of D^T: dW = Q_U (R_U R_D^T) Q_D^T with orthonormal Q."""
    up, down = factors.up.detach().double(), factors.down.detach().double()
    return torch.linalg.qr(up, mode="r").R, torch.linalg.qr(down.mT, mode="r").R


def tail_errors(energies: Tensor, count: int) -> Tensor:
    """Falling energies of orthogonal parts -> relative error of keeping the first 1, 2, ... `count` of them."""
    left = energies.flip(0).cumsum(0).flip(0)  # left[k] = what follows the first k
    if left[0] == 0:
        return left.new_zeros(count)
    missing = torch.cat([left[1:], left.new_zeros(count)])[:count]
    return (missing / left[0]).sqrt()


def term_gram(factors: Factors) -> tuple[Tensor, Tensor]:
    """Inner products of the r terms u_i d_i at unit length and, last, of their true sum dW; and ||dW||^2.

    <u_i d_i, u_j d_j> = (U^T U)_ij (D D^T)_ij.
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
    """[r + 1]: the least squared distance of dW to the span of any k terms, k = 0..r, over all subsets.

    Term after term, every matrix of the stack splits in two: the term left out (its row and column dropped), and taken
    (what it explains subtracted from all that remains). At the end one number is left of each: the residual of dW.
    Halving matrices in the end make this about six numbers a subset.
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
    """[r + 1]: as `exhaustive`, taking next the term that explains most of what is left of dW."""
    residuals, gram = [gram[-1, -1]], gram.clone()
    for _ in range(len(gram) - 1):
        pivots, towards = gram.diagonal()[:-1], gram[:-1, -1]
        scale = torch.where(pivots > SINGULAR, towards.square() / pivots, -1.0)
        gram = gram - explained(gram[None], int(scale.argmax()))[0]
        residuals.append(gram[-1, -1])
    return torch.stack(residuals)


def explained(stack: Tensor, term: int) -> Tensor:
    """What a term explains of the inner products of all others and dW; nothing once the taken ones span it."""
    pivot = stack[:, term, term]
    inverse = torch.where(pivot > SINGULAR, 1 / pivot, 0.0)
    return inverse[:, None, None] * stack[:, :, term, None] * stack[:, term, None, :]
