"""ZipLoRA: learned coefficients for the columns of the updates.

    dW_m = m_c (x) dW_c + m_s (x) dW_s                                                  (eq. 2)
    L = || (D + dW_m)(x_c, p_c) - (D + dW_c)(x_c, p_c) ||^2
      + || (D + dW_m)(x_s, p_s) - (D + dW_s)(x_s, p_s) ||^2 + lambda sum_l |m_c . m_s|    (eq. 3)

D is the base model; x_c and x_s are noised content and style images with their prompts. m_c and m_s scale the columns
of the updates (the inputs of a layer): `mask_dim: in` in the paper. DuoLoRA describes ZipLoRA with scaled rows.

The merge has masks i (or o). They start as ones and are trained with Adam until the similarity is zero.

The paper leaves open, and this code decides: The reconstruction terms are mean squared errors, as in the community's
code (the paper writes a norm). |m_c . m_s|, which the paper calls cosine similarity, is the mean of |m_c,i m_s,i| over
the entries of a layer (`similarity: dot`, as in the community's code) or |cos(m_c, m_s)| (`cosine`, as in LoRA.rar). It
is averaged over the layers (`layers: mean`), so that its weight relative to the reconstruction does not depend on the
number of layers. The sum over SDXL's 560 layers, as in the community's code (`layers: sum`), is orders of magnitude
larger than the reconstruction terms.

`ziplora_mkshing` is the community's code (mkshing/ziplora-pytorch): lr 5e-5, with which 100 steps of Adam change a mask
by at most 0.005, and the similarity summed over the layers.

Source: Shah et al., ZipLoRA: Any Subject in Any Style by Effectively Merging LoRAs, ECCV 2024, arXiv 2311.13600.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from lorabench.config.settings import setting
from lorabench.merging.learned import LearnedMasks
from lorabench.models.layer import Layer

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.layer import AllMasks
    from lorabench.merging.step import MergeStep

TERM = "similarity"


@dataclass(frozen=True, kw_only=True)
class ZipLoRA(LearnedMasks):
    """Input or output masks with a similarity term.

    Args:
        mask_dim: "in" masks the columns of the update, "out" the rows.
        lambda_similarity: Weight of the similarity.
        similarity: "dot" or "cosine".
        layers: Reduction of the similarity over layers, "mean" or "sum".
        stop_at: Stop when the weighted similarity is at most this. None: make all steps.
    """

    mask_dim: str = setting(options=("in", "out"))
    lambda_similarity: float = setting(least=0)
    similarity: str = setting(options=("dot", "cosine"))
    layers: str = setting(options=("mean", "sum"))
    stop_at: float | None

    def masks(self, layers: Mapping[str, Layer], seed: int) -> AllMasks:
        import torch

        from lorabench.lora.layer import Masks

        def mask(layer: Layer) -> Masks:
            return (
                Masks(i=torch.ones(layer.in_features))
                if self.mask_dim == "in"
                else Masks(o=torch.ones(layer.out_features))
            )

        return {name: tuple(mask(layer) for _ in layer.ranks) for name, layer in layers.items()}

    def loss(self, step: MergeStep, masks: AllMasks) -> dict[str, Tensor]:
        terms = step.reconstruction(step.merged(*step.images), step.teachers())
        if self.lambda_similarity:
            terms[TERM] = self.lambda_similarity * self.overlap(masks)
        return terms

    def overlap(self, masks: AllMasks) -> Tensor:
        """Return sum_l |m_c . m_s| or its mean; for more than two adapters, the sum over all couples."""
        import torch
        from torch.nn.functional import cosine_similarity

        layers = []
        for layer in masks.values():
            for m_c, m_s in combinations([mask.only() for mask in layer], 2):
                if self.similarity == "cosine":
                    layers.append(cosine_similarity(m_c, m_s, dim=-1).abs())
                else:
                    layers.append((m_c * m_s).abs().mean(-1))
        total = torch.stack(layers).sum(0)
        return total if self.layers == "sum" else total / len(masks)

    def stop(self, terms: Mapping[str, Tensor]) -> Tensor | None:
        return terms[TERM] <= self.stop_at if self.stop_at is not None and TERM in terms else None
