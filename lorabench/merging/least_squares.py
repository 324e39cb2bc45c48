"""Masks in closed form: at one layer, what each teacher puts out there is least squares in the masks.

Adapters k have factors D_k [r_k, in] and U_k [out, r_k]. H_k is the second moment of what teacher k (adapter k alone,
on its own images) sends through the layer. The merge with masks m should answer teacher k's inputs as teacher k does:

    E(m) = sum_k mean over tokens of || dW(m) x_k - dW_k x_k ||^2 = m^T A m - 2 b^T m + c

- rank masks: m [R = sum_k r_k], dW(m) = U diag(m) D with U = [U_1 | U_2 | ...] and D stacked likewise, H_k the moment
  of z = D x:  A = sum_k (U^T U) o H_k,  b = sum_k ((U^T U) o H_k) e_k, where `o` is elementwise and e_k marks adapter
  k's entries.
- input masks: m [K in], dW(m) = sum_j dW_j diag(m_j). Stacked as [dW_1 | dW_2 | ...] on K copies of x this is the same
  formula with dW_i^T dW_j for U^T U and the moment of x, repeated K x K times, for H_k. No dense update is formed.
- output masks: m [out, K]. Channels do not meet: each is a system of size K with A = sum_k P_k, b = sum_k P_k e_k and
  P_k[i, j] = u_i H_k[i, j] u_j^T, u_j being the channel's row of U_j.

Both teachers weigh by their error as it stands, as in the trained objective, and not by their own strength: where an
adapter changes almost nothing, a relative error would ask the other one to do nothing either.

What the inputs say nothing about has no single best mask: entries that no input reaches, or adapters that do the same.
A small ridge towards one, relative to the mean of A's diagonal, makes the masks unique and leaves there what the naive
sum has. (Two identical adapters get 1/2 each.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorabench.lora.adapter import Factors


@dataclass(frozen=True)
class LocalError:
    """E(m) = m^T A m - 2 b^T m + c; leading axes are systems that do not meet.

    A: [..., n, n].  b: [..., n].  c: [...], the error of no adapter at all, which is the teachers' energy.
    """

    A: Tensor
    b: Tensor
    c: Tensor

    def __call__(self, m: Tensor) -> Tensor:
        return (m * ((self.A @ m[..., None])[..., 0] - 2 * self.b)).sum(-1) + self.c


def rank_error(factors: Sequence[Factors], moments: Tensor) -> LocalError:
    """Of rank masks [R].  moments: [K, R, R], of z = D x by teacher."""
    moments = precise(moments)
    up = torch.cat([each.up for each in factors], dim=1).to(moments)
    return _error(up.mT @ up * moments, _marks([each.rank for each in factors], moments))


def input_error(factors: Sequence[Factors], moments: Tensor) -> LocalError:
    """Of input masks [K in], adapter by adapter.  moments: [K, in, in], of x by teacher."""
    moments = precise(moments)
    count = len(factors)
    up = torch.cat([each.up for each in factors], dim=1).to(moments)
    down = torch.block_diag(*(each.down.to(moments) for each in factors))  # [R, K in]
    gram = down.mT @ (up.mT @ up) @ down
    return _error(gram * moments.repeat(1, count, count), _marks([moments.shape[-1]] * count, moments))


def output_error(factors: Sequence[Factors], moments: Tensor) -> LocalError:
    """Of output masks [out, K], one system a channel.  moments: [K, R, R], of z = D x by teacher."""
    moments = precise(moments)
    up = torch.cat([each.up for each in factors], dim=1).to(moments)
    parts = _marks([each.rank for each in factors], moments)[:, None] * up  # [K, out, R], an adapter's own columns of U
    systems = torch.einsum("ior,krs,jos->koij", parts, moments, parts)
    return _error(systems, torch.eye(len(factors)).to(moments))


def precise(moments: Tensor) -> Tensor:
    """On the CPU in double precision: the systems are small, and single precision would lose the small eigenvalues."""
    return moments.cpu().double()


def least(error: LocalError, ridge: float) -> Tensor:
    """The m [..., n] of the least E(m) + ridge * mean(diag A) * || m - 1 ||^2."""
    rhs = error.b - error.A.sum(-1)  # in m - 1: nothing to correct, nothing changed
    return 1 + torch.cholesky_solve(rhs[..., None], torch.linalg.cholesky(_damped(error, ridge)[0]))[..., 0]


def least_nonnegative(error: LocalError, ridge: float, penalty: Tensor) -> Tensor:
    """The m [n] >= 0 of the least E(m) + ridge * mean(diag A) * || m - 1 ||^2 + penalty^T m.

    With m >= 0 a weighted sum of the masks is a weighted l1 norm: the lasso, without its kinks, is non-negative least
    squares in the Cholesky factor, || L^T m - L^-1 (b - penalty / 2) ||^2 with A = L L^T.
    """
    from scipy.optimize import nnls

    A, damping = _damped(error, ridge)
    L = torch.linalg.cholesky(A)
    rhs = error.b + damping - penalty / 2
    target = torch.linalg.solve_triangular(L, rhs[:, None], upper=False)[:, 0]
    return torch.from_numpy(nnls(L.mT.numpy(), target.numpy())[0])


def _error(systems: Tensor, marks: Tensor) -> LocalError:
    """systems: [K, ..., n, n], each teacher's matrix.  marks: [K, n], ones where an entry is the teacher's own."""
    return LocalError(
        A=systems.sum(0),
        b=torch.einsum("k...ij,kj->...i", systems, marks),
        c=torch.einsum("ki,k...ij,kj->...", marks, systems, marks),
    )


def _marks(sizes: Sequence[int], like: Tensor) -> Tensor:
    """[K, sum of sizes]: row k is one over the entries of adapter k."""
    return torch.block_diag(*(like.new_ones(1, size) for size in sizes))


def _damped(error: LocalError, ridge: float) -> tuple[Tensor, Tensor]:
    """A with the ridge on its diagonal, and the ridge [..., 1]; where A is zero anything gives masks of one."""
    diagonal = error.A.diagonal(dim1=-2, dim2=-1)
    damping = ridge * diagonal.mean(-1, keepdim=True)
    damping = torch.where(damping > 0, damping, torch.ones_like(damping))
    return error.A + torch.diag_embed(damping.expand_as(diagonal)), damping
