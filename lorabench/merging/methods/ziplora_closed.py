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

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabench.config.choices import choose
from lorabench.merging.method import Method

if TYPE_CHECKING:
    from lorabench.lora.layer import AllMasks
    from lorabench.merging.step import MergeStep


@dataclass(frozen=True, kw_only=True)
class ZipLoRAClosed(Method):
    """draws, batch: teacher passes, and images of each concept in one.  ridge: see lorabench.merging.least_squares.

    mask_dim: "in" (columns) or "out" (rows).
    """

    draws: int
    batch: int
    ridge: float
    mask_dim: str

    def __post_init__(self) -> None:
        choose("method.mask_dim", self.mask_dim, ("in", "out"))

    def solve(self, draw: Callable[[int, int], MergeStep], seed: int) -> AllMasks:
        from lorabench.lora.layer import Masks
        from lorabench.merging.least_squares import input_error, least, output_error
        from lorabench.merging.moments import teacher_moments

        steps = [draw(step, self.batch) for step in range(self.draws)]
        columns = self.mask_dim == "in"
        moments = teacher_moments(steps, inputs=columns)
        masks = {}
        for name, layer in steps[0].adapters.layers.items():
            factors = layer.factors()
            if columns:
                m = least(input_error(factors, moments[name]), self.ridge).float()
                masks[name] = tuple(Masks(i=each) for each in m.chunk(len(factors)))
            else:
                m = least(output_error(factors, moments[name]), self.ridge).float()
                masks[name] = tuple(Masks(o=each.clone()) for each in m.unbind(-1))
        return masks
