"""ZipLoRA in closed form (not published): the masks of each layer by least squares, without optimizer steps.

    mask_dim in:   dW_m = sum_k dW_k diag(m_k),   m_k in R^in
    mask_dim out:  dW_m = sum_k diag(m_k) dW_k,   m_k in R^out
    L = sum_k || dW_m x_k - dW_k x_k ||^2,   k = c, s

x_k is a layer's input while the model with only adapter k denoises the images of concept k. L is quadratic in the
masks: one system of size 2 in for the columns, or one system of size 2 for each row (lorabench.merging.least_squares).

The merge has masks i (or o). In contrast to ZipLoRA, each layer is fitted separately and to its optimum, on the inputs
from the teachers. The similarity |m_c . m_s| is omitted, because a product of unknowns is not quadratic. Its purpose,
that the adapters do not disturb each other, is measured by least squares on actual inputs.

Input masks need the second moments of a layer's inputs [in, in] per teacher: about 10 GB for SDXL's 560 layers, and
systems of up to 4096 unknowns. Output masks need the same as rank masks, 100 times less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabench.config.settings import setting
from lorabench.merging.masked import MaskedSum
from lorabench.merging.merge import Activations
from lorabench.models.layer import Layer

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.adapter import Factors
    from lorabench.lora.layer import Masks


@dataclass(frozen=True, kw_only=True)
class ZipLoRAClosed(MaskedSum):
    """Input or output masks by least squares.

    Args:
        draws: Number of teacher passes.
        batch: Images of each concept per pass.
        ridge: Regularization, see lorabench.merging.least_squares.
        mask_dim: "in" masks the columns of the update, "out" the rows.
    """

    draws: int = setting(least=1)
    batch: int = setting(least=1)
    ridge: float = setting(above=0)
    mask_dim: str = setting(options=("in", "out"))

    @property
    def activations(self) -> Activations:
        return Activations(self.draws, self.batch, inputs=self.mask_dim == "in")

    def masks(self, updates: Sequence[Factors], layer: Layer, seed: int, moments: Tensor | None) -> tuple[Masks, ...]:
        from lorabench.lora.layer import Masks
        from lorabench.merging.least_squares import input_error, least, output_error

        assert moments is not None
        if self.mask_dim == "in":
            m = least(input_error(updates, moments), self.ridge).float()
            return tuple(Masks(i=each) for each in m.chunk(len(updates)))
        m = least(output_error(updates, moments), self.ridge).float()
        return tuple(Masks(o=each.clone()) for each in m.unbind(-1))
