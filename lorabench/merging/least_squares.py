"""Masks in closed form: minimize the error of a layer's output, which is quadratic in the masks.

Adapter k has factors D_k [r_k, in] and U_k [out, r_k]. Teacher k is the model with adapter k only, on the images of
concept k. H_k is the second moment of the activations that teacher k sends through the layer. For the inputs of teacher
k, the merge with masks m should have the same output as teacher k:

    E(m) = sum_k mean over tokens of || dW(m) x_k - dW_k x_k ||^2 = m^T A m - 2 b^T m + c

- Rank masks: m [R = sum_k r_k], dW(m) = U diag(m) D with U = [U_1 | U_2 | ...] and D stacked in the same way. H_k is
  the moment of z = D x, A = sum_k (U^T U) o H_k, b = sum_k ((U^T U) o H_k) e_k. Here `o` is elementwise, and e_k is 1
  for the entries of adapter k and 0 elsewhere.
- Input masks: m [K in], dW(m) = sum_j dW_j diag(m_j). Stacked as [dW_1 | dW_2 | ...] on K copies of x, this is the same
  formula with dW_i^T dW_j instead of U^T U, and with the moment of x, repeated K x K times, as H_k. No dense update is
  formed.
- Output masks: m [out, K]. Channels are independent. Each is a system of size K with A = sum_k P_k, b = sum_k P_k e_k
  and P_k[i, j] = u_i H_k[i, j] u_j^T, in which u_j is the channel's row of U_j.

The errors of the teachers are absolute, as in the trained objective, and not relative to their own strength. If an
adapter changes almost nothing, a relative error would demand that the other one changes nothing either.

Some entries have no unique optimum: those that no input reaches, and those of adapters that do the same. A small ridge
towards one, relative to the mean of A's diagonal, makes the masks unique and keeps the direct merge for such entries.
(Two identical adapters get 1/2 each.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorabench.lora.adapter import Factors


@dataclass(frozen=True)
class LocalError:
    """The error E(m) = m^T A m - 2 b^T m + c. Leading axes are independent systems.

    Args:
        A: [..., n, n].
        b: [..., n].
        c: [...], the error without any adapter, which is the energy of the teachers' outputs.
    """

    A: Tensor
    b: Tensor
    c: Tensor

    def __call__(self, m: Tensor) -> Tensor:
        return (m * ((self.A @ m[..., None])[..., 0] - 2 * self.b)).sum(-1) + self.c


def rank_error(factors: Sequence[Factors], moments: Tensor) -> LocalError:
    """Return the error as a function of rank masks [R].

    Args:
        factors: Factors of each adapter.
        moments: Second moments of z = D x by teacher, [K, R, R].
    """
    moments = precise(moments)
    up = torch.cat([each.up for each in factors], dim=1).to(moments)
    return _error(up.mT @ up * moments, _marks([each.rank for each in factors], moments))


def input_error(factors: Sequence[Factors], moments: Tensor) -> LocalError:
    """Return the error as a function of input masks [K in], ordered by adapter.

    Args:
        factors: Factors of each adapter.
        moments: Second moments of x by teacher, [K, in, in].
    """
    moments = precise(moments)
    count = len(factors)
    up = torch.cat([each.up for each in factors], dim=1).to(moments)
    down = torch.block_diag(*(each.down.to(moments) for each in factors))  # [R, K in]
    gram = down.mT @ (up.mT @ up) @ down
    return _error(gram * moments.repeat(1, count, count), _marks([moments.shape[-1]] * count, moments))


def output_error(factors: Sequence[Factors], moments: Tensor) -> LocalError:
    """Return the error as a function of output masks [out, K], one system per channel.

    Args:
        factors: Factors of each adapter.
        moments: Second moments of z = D x by teacher, [K, R, R].
    """
    moments = precise(moments)
    up = torch.cat([each.up for each in factors], dim=1).to(moments)
    parts = _marks([each.rank for each in factors], moments)[:, None] * up  # [K, out, R], the columns of U per adapter
    systems = torch.einsum("ior,krs,jos->koij", parts, moments, parts)
    return _error(systems, torch.eye(len(factors)).to(moments))


def precise(moments: Tensor) -> Tensor:
    """Return moments on the CPU in float64. The systems are small, and float32 would lose the small eigenvalues."""
    return moments.cpu().double()


def least(error: LocalError, ridge: float) -> Tensor:
    """Return the m [..., n] that minimizes E(m) + ridge * mean(diag A) * || m - 1 ||^2."""
    rhs = error.b - error.A.sum(-1)  # for m - 1, so that a vanishing error leaves ones
    return 1 + torch.cholesky_solve(rhs[..., None], torch.linalg.cholesky(_damped(error, ridge)[0]))[..., 0]


def least_nonnegative(error: LocalError, ridge: float, penalty: Tensor) -> Tensor:
    """Return the m [n] >= 0 that minimizes E(m) + ridge * mean(diag A) * || m - 1 ||^2 + penalty^T m.

    For m >= 0, a weighted sum of the masks is a weighted l1 norm. So this is a lasso, and equal to non-negative least
    squares with the Cholesky factor: || L^T m - L^-1 (b - penalty / 2) ||^2 with A = L L^T.
    """
    from scipy.optimize import nnls

    A, damping = _damped(error, ridge)
    L = torch.linalg.cholesky(A)
    rhs = error.b + damping - penalty / 2
    target = torch.linalg.solve_triangular(L, rhs[:, None], upper=False)[:, 0]
    return torch.from_numpy(nnls(L.mT.numpy(), target.numpy())[0])


def _error(systems: Tensor, marks: Tensor) -> LocalError:
    """Return the error for each teacher's matrix [K, ..., n, n] and the marks e_k, [K, n]."""
    return LocalError(
        A=systems.sum(0),
        b=torch.einsum("k...ij,kj->...i", systems, marks),
        c=torch.einsum("ki,k...ij,kj->...", marks, systems, marks),
    )


def _marks(sizes: Sequence[int], like: Tensor) -> Tensor:
    """Return e_k for all adapters, [K, sum of sizes]: row k is 1 for the entries of adapter k."""
    return torch.block_diag(*(like.new_ones(1, size) for size in sizes))


def _damped(error: LocalError, ridge: float) -> tuple[Tensor, Tensor]:
    """Return A with the ridge on its diagonal, and the ridge [..., 1]. If A is zero, the ridge gives masks of one."""
    diagonal = error.A.diagonal(dim1=-2, dim2=-1)
    damping = ridge * diagonal.mean(-1, keepdim=True)
    damping = torch.where(damping > 0, damping, torch.ones_like(damping))
    return error.A + torch.diag_embed(damping.expand_as(diagonal)), damping
