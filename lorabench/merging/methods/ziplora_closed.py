"""ZipLoRA in closed form (ours: no publication): the masks of each layer by least squares, without optimiser steps.

    mask_dim in:   dW_m = sum_k dW_k diag(m_k),   m_k in R^in
    mask_dim out:  dW_m = sum_k diag(m_k) dW_k,   m_k in R^out
    L = sum_k || dW_m x_k - dW_k x_k ||^2,   k = c, s

x_k is what a layer gets while adapter k alone denoises its own images. Both are least squares in the masks: one system
of size 2 in for the columns, one of size 2 for each row. lorabench.merging.least_squares gives the matrices.

Against the direct merge: masks i (or o). Against ZipLoRA: layers are fitted one by one and to convergence, on the
inputs
that the teachers give them. The similarity |m_c . m_s| is left out: a product of unknowns is no least squares, and what
it is for, that the adapters do not disturb each other, is what the least squares measure on the inputs that occur.

Input masks need the second moments of a layer's inputs [in, in] by teacher: about 10 GB for the 560 layers of SDXL, and
systems of up to 4096 unknowns; output masks need what rank masks need, which is 100 times less.
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
        draws: Teacher passes.
        batch: Images of each concept per pass.
        ridge: See lorabench.merging.least_squares.
        mask_dim: "in" masks columns of the update, "out" rows.
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
