"""Rank reduction of a layer: the part of its output in a learned subspace is removed.

    W' = W - Q Q^T W,    B = Q R,    Q^T Q = I        (B, Q: [out, rank];  only B is learned)

W' depends on the span of B only. As factors the change is `up` = -Q, `down` = Q^T W, so that it is stored, merged and
exported like any adapter. Several subspaces are removed together by an orthonormal basis of all of them,

    Q = QR([Q_1 | ... | Q_n]),    W' = W - Q Q^T W

which is not the sum of their changes: that would remove twice what they share.

Source: Chen et al., PaRa, ICLR 2025, arXiv 2406.05641.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lorabench.base import UserError
from lorabench.lora.adapter import Adapter
from lorabench.lora.factors import Factors
from lorabench.lora.layer import linear_at, union

DEPENDENT = 1e-5  # directions below this share of the strongest one are rounding
ORTHONORMAL = 1e-3  # largest entry of Q^T Q - I in a file of half precision


class Bases(nn.Module):
    """The learned matrices B of several layers, one parameter per output width.

    Args:
        starts: B [out, rank] by layer.
    """

    def __init__(self, starts: Mapping[str, Tensor]):
        super().__init__()
        widths: dict[int, list[str]] = {}
        for name, start in starts.items():
            widths.setdefault(len(start), []).append(name)
        self.names = list(widths.values())
        self.ranks = {name: start.shape[1] for name, start in starts.items()}
        self.stacks = nn.ParameterList()
        for names in self.names:
            most = max(self.ranks[name] for name in names)
            padded = [nn.functional.pad(starts[name], (0, most - self.ranks[name])) for name in names]
            self.stacks.append(nn.Parameter(torch.stack(padded)))

    def orthonormal(self) -> dict[str, Tensor]:
        """Return Q [out, rank] by layer, with gradients.

        Q = B L^-T with B^T B = L L^T has the span of B, as the Q of a QR decomposition has, at half the time. Columns
        of padding have a one on the diagonal of B^T B instead of a zero, and stay zero.
        """
        found = {}
        for names, stack in zip(self.names, self.stacks, strict=True):
            with torch.autocast(stack.device.type, enabled=False):
                columns = torch.arange(stack.shape[2], device=stack.device)
                ranks = torch.tensor([self.ranks[name] for name in names], device=stack.device)
                padding = (columns >= ranks[:, None]).to(stack)
                lower = torch.linalg.cholesky(stack.mT @ stack + torch.diag_embed(padding))
                q = torch.linalg.solve_triangular(lower.mT, stack, upper=True, left=False)
            found |= {name: each[:, : self.ranks[name]] for name, each in zip(names, q, strict=True)}
        return found

    def starts(self) -> dict[str, Tensor]:
        """Return B [out, rank] by layer."""
        return {
            name: each.detach()[:, : self.ranks[name]]
            for names, stack in zip(self.names, self.stacks, strict=True)
            for name, each in zip(names, stack, strict=True)
        }


class Projected(nn.Module):
    """A linear layer without the part of its output in a subspace: y = h - Q s Q^T h + bias, h = W x.

    Attributes:
        q: [out, rank] of the next forward; the bases of several concepts side by side.
        scale: [rows or 1, rank]: 1 if a row uses a column of q, else 0.
    """

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base
        self.q: Tensor | None = None
        self.scale: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map x [rows, ..., in] to [rows, ..., out]."""
        h = linear(x, self.base.weight)
        if self.q is not None:
            z = h @ self.q.to(h)
            if self.scale is not None:
                z = z * self.scale.to(z).view(-1, *(1,) * (x.ndim - 2), z.shape[-1])
            h = h - z @ self.q.to(h).mT
        return h if self.base.bias is None else h + self.base.bias


@contextmanager
def projected(network: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Projected]]:
    """Replace linear layers by `Projected` ones within the block."""
    bases = {name: linear_at(network, name) for name in layers}
    found = {name: Projected(base) for name, base in bases.items()}
    try:
        for name, module in found.items():
            network.set_submodule(name, module)
        yield found
    finally:
        for name, base in bases.items():
            network.set_submodule(name, base)


def reduction(basis: Tensor, weight: Tensor) -> Factors:
    """Return the change -Q Q^T W of a weight [out, in] for a basis B [out, rank], in fp32."""
    q = torch.linalg.qr(basis.detach().double()).Q
    return Factors((q.mT @ weight.detach().double()).float().cpu(), -q.float().cpu())


def reductions(network: nn.Module, bases: Mapping[str, Tensor]) -> Adapter:
    """Return the change of every layer for its basis B."""
    return Adapter({name: reduction(basis, linear_at(network, name).weight) for name, basis in bases.items()})


def joined_reduction(parts: Sequence[Factors]) -> Factors:
    """Return the change that removes the subspaces of all parts, without W.

    With S = [up_1 | ... | up_n] = P diag(s) V^T, P is an orthonormal basis of what a QR decomposition of S spans, and
    P^T W follows from the stored Q_k^T W. Dependent directions (s near 0) are left out.

    Raises:
        UserError: If a part is not a rank reduction.
    """
    parts = [each for each in parts if not each.is_zero]
    if not parts:
        raise UserError("there is no basis to merge; use adapters of method/training=para")
    for each in parts:
        gram = each.up.double().mT @ each.up.double()
        if (gram - torch.eye(each.rank, dtype=gram.dtype, device=gram.device)).abs().max() > ORTHONORMAL:
            raise UserError(
                "an adapter is not a rank reduction at scale 1 (its `up` is not orthonormal), so its basis cannot be "
                "merged; use method/training=para, or another merge such as method/merge=direct"
            )
    up, down = torch.cat([each.up.double() for each in parts], 1), torch.cat([each.down.double() for each in parts])
    p, s, vt = torch.linalg.svd(up, full_matrices=False)
    kept = s > DEPENDENT * s[0]
    return Factors((vt[kept] @ down / s[kept, None]).float(), p[:, kept].float())


def principal_cosines(left: Factors, right: Factors) -> Tensor:
    """Return the cosines of the principal angles between the output subspaces of two updates, falling.

    An update of rank 0 has none.
    """
    if left.is_zero or right.is_zero:
        return torch.zeros(0, dtype=torch.float64)
    q = [output_basis(each) for each in (left, right)]
    return torch.linalg.svdvals(q[0].mT @ q[1]).clamp(max=1)


def output_basis(factors: Factors) -> Tensor:
    """Return an orthonormal basis [out, rank] of the outputs of an update, in float64."""
    exact = Factors(factors.down.double(), factors.up.double())
    left, right = torch.linalg.qr(exact.up), torch.linalg.qr(exact.down.mT)
    u, s, _ = torch.linalg.svd(left.R @ right.R.mT)
    return left.Q @ u[:, s > DEPENDENT * s[0]]


def overlap(left: Sequence[Adapter], right: Sequence[Adapter]) -> float:
    """Return how much the outputs of two groups of adapters have in common, between 0 and 1.

    Mean over the layers that both adapt of ||Q_l^T Q_r||_F^2 / r, with orthonormal bases Q of the summed updates and
    the smaller of their ranks r: the mean squared cosine of the principal angles. 0 if no layer is adapted by both.
    """
    shared = [name for name in union(left) if name in set(union(right))]
    found = []
    for name in shared:
        sides = [Factors.total([each[name] for each in side if name in each]) for side in (left, right)]
        cosines = principal_cosines(*sides)
        found.append(float(cosines.square().mean()) if len(cosines) else 0.0)
    return sum(found) / len(found) if found else 0.0
