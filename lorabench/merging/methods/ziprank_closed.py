"""ZipRank in closed form (ours: no publication): the masks of each layer by least squares, without optimiser steps.

    dW_m = sum_k U_k diag(m_k) D_k,   m_k in R^r,   k = c, s
    L = sum_k || U diag(m) z_k - U_k D_k x_k ||^2,   z_k = [D_c; D_s] x_k,   U = [U_c | U_s],   m = [m_c; m_s]
      = m^T A m - 2 b^T m + const,   A = (U^T U) o sum_k E[z_k z_k^T],   b = sum_k ((U^T U) o E[z_k z_k^T]) e_k

x_k is what a layer gets while adapter k alone denoises its own images, e_k marks its entries of m, `o` is elementwise.
ZipRank asks the same of the last prediction instead of each layer's output: m is then learned through the whole UNet,
a forward and a backward pass a step. Here a few teacher passes give A and b of all layers at once, and m solves a
system of size r_c + r_s.

Against the direct merge: masks r. Against ZipRank: layers are fitted one by one, each to its optimum, on the inputs
that
the teachers give them; a layer neither sees nor mends what the others leave over. ZipRank's 100 steps of 0.01 from all
ones do, and reach a prediction that is nearer to the teachers'.

The layer prior of DuoLoRA can be added, with masks that may not be negative:

    L / energy + lambda_prior * mean(m_dom),   m >= 0,   energy = sum_k || U_k D_k x_k ||^2

a lasso, solved exactly. Its hinge between dominant and minor mask is left out.

The optimum depends on the basis: in the SVD basis (`basis: svd`, the paper's) the entries of one adapter do not meet in
U, among the trained factors (`basis: raw`) they do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorabench.config.choices import choose
from lorabench.merging.method import Method
from lorabench.merging.priors import dominant_roles, leads_somewhere, read_prior
from lorabench.models.layer import Layer

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.adapter import LoRA
    from lorabench.lora.layer import AllMasks
    from lorabench.merging.step import MergeStep


@dataclass(frozen=True, kw_only=True)
class ZipRankClosed(Method):
    """draws, batch: teacher passes, and images of each concept in one.  ridge: see lorabench.merging.least_squares.

    basis: "svd" or "raw".  prior: which adapter dominates a layer, as in DuoLoRA.  lambda_prior: 0 is without.
    """

    draws: int
    batch: int
    ridge: float
    basis: str
    prior: Any
    lambda_prior: float

    def __post_init__(self) -> None:
        choose("method.basis", self.basis, ("svd", "raw"))
        object.__setattr__(self, "prior", read_prior(self.prior))

    def rebase(self, loras: Sequence[LoRA]) -> Sequence[LoRA]:
        from lorabench.lora.adapter import in_basis

        return in_basis(loras, self.basis)

    def masks(self, layers: Mapping[str, Layer], seed: int) -> None:
        if self.lambda_prior:
            leads_somewhere(dominant_roles(self.prior, layers))

    def solve(self, draw: Callable[[int, int], MergeStep], seed: int) -> AllMasks:
        from lorabench.lora.layer import Masks
        from lorabench.merging.least_squares import least, least_nonnegative, rank_error
        from lorabench.merging.moments import teacher_moments

        steps = [draw(step, self.batch) for step in range(self.draws)]
        moments = teacher_moments(steps)
        penalties = self.penalties(steps[0].layers) if self.lambda_prior else {}
        masks = {}
        for name, layer in steps[0].adapters.layers.items():
            error = rank_error(layer.factors(), moments[name])
            if self.lambda_prior:
                m = least_nonnegative(error, self.ridge, penalties[name] * error.c)
            else:
                m = least(error, self.ridge)
            masks[name] = tuple(Masks(r=each) for each in m.float().split(layer.ranks))
        return masks

    def penalties(self, layers: Mapping[str, Layer]) -> dict[str, Tensor]:
        """The weight of each entry in lambda_prior * mean(m_dom), by layer."""
        import torch

        def weights(layer: Layer, dominant: Sequence[int]) -> Tensor:
            share = self.lambda_prior / max(1, sum(layer.ranks[k] for k in dominant))
            each = [torch.full((rank,), share * (k in dominant)) for k, rank in enumerate(layer.ranks)]
            return torch.cat(each).double()

        roles = dominant_roles(self.prior, layers)
        return {name: weights(layer, layer.of(role) if (role := roles[name]) else ()) for name, layer in layers.items()}
