"""ZipRank in closed form (not published): the masks of each layer by least squares, without optimizer steps.

    dW_m = sum_k U_k diag(m_k) D_k,   m_k in R^r,   k = c, s
    L = sum_k || U diag(m) z_k - U_k D_k x_k ||^2,   z_k = [D_c; D_s] x_k,   U = [U_c | U_s],   m = [m_c; m_s]
      = m^T A m - 2 b^T m + const,   A = (U^T U) o sum_k E[z_k z_k^T],   b = sum_k ((U^T U) o E[z_k z_k^T]) e_k

x_k is a layer's input while the model with adapter k only denoises the images of concept k. e_k marks the entries of
adapter k in m, and `o` is elementwise. ZipRank minimizes the same error of the final prediction instead of each layer's
output; then m is learned through the whole model, with a forward and a backward pass per step. Here a few teacher
passes give A and b of all layers, and m is the solution of a system of size r_c + r_s.

The merge has masks r. In contrast to ZipRank, each layer is fitted separately, to its optimum, on the inputs from the
teachers, and cannot correct the errors of other layers. ZipRank's 100 steps of 0.01 from ones can, and its predictions
are closer to the teachers'.

DuoLoRA's layer prior can be added, with masks that must not be negative:

    L / energy + lambda_prior * mean(m_dom),   m >= 0,   energy = sum_k || U_k D_k x_k ||^2

This is a lasso, which is solved exactly. The hinge between dominant and minor mask is omitted.

The optimum depends on the basis: in the SVD basis (`basis: svd`, as in the paper) the columns of an adapter's U are
orthogonal, in the trained factors (`basis: raw`) they are not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorabench.config.settings import setting
from lorabench.merging.masked import MaskedSum
from lorabench.merging.merge import Activations
from lorabench.merging.priors import check_dominant, check_prior, dominant_role, dominant_roles, prior_note, read_prior
from lorabench.models.layer import Layer

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.adapter import Factors
    from lorabench.lora.layer import Masks


@dataclass(frozen=True, kw_only=True)
class ZipRankClosed(MaskedSum):
    """Rank masks by least squares.

    Args:
        draws: Number of teacher passes.
        batch: Images of each concept per pass.
        ridge: Regularization, see lorabench.merging.least_squares.
        basis: Factors that the masks multiply.
        prior: Dominant role of each layer, as in DuoLoRA.
        lambda_prior: Weight of the prior; 0: no prior.
    """

    draws: int = setting(least=1)
    batch: int = setting(least=1)
    ridge: float = setting(above=0)
    basis: str = setting(options=("svd", "raw"))
    prior: Any
    lambda_prior: float = setting(least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "prior", read_prior(self.prior))

    @property
    def activations(self) -> Activations:
        return Activations(self.draws, self.batch)

    def check(self, layers: Mapping[str, Layer]) -> None:
        if self.lambda_prior:
            check_prior(self.prior, layers)
            check_dominant(dominant_roles(self.prior, layers))

    def note(self, layers: Mapping[str, Layer]) -> str | None:
        return prior_note(self.prior, layers) if self.lambda_prior else None

    def masks(self, updates: Sequence[Factors], layer: Layer, seed: int, moments: Tensor | None) -> tuple[Masks, ...]:
        from lorabench.lora.layer import Masks
        from lorabench.merging.least_squares import least, least_nonnegative, rank_error

        assert moments is not None
        error = rank_error(updates, moments)
        if self.lambda_prior:
            m = least_nonnegative(error, self.ridge, self.penalty(layer) * error.c)
        else:
            m = least(error, self.ridge)
        return tuple(Masks(r=each) for each in m.float().split(layer.ranks))

    def penalty(self, layer: Layer) -> Tensor:
        """Return the weight of each entry in lambda_prior * mean(m_dom)."""
        import torch

        role = dominant_role(self.prior, layer)
        dominant = layer.of(role) if role else ()
        share = self.lambda_prior / max(1, sum(layer.ranks[k] for k in dominant))
        each = [torch.full((rank,), share * (k in dominant)) for k, rank in enumerate(layer.ranks)]
        return torch.cat(each).double()
