"""ZipLoRA: Any Subject in Any Style by Effectively Merging LoRAs (Shah et al., ECCV 2024, arXiv 2311.13600).

    dW_m = m_c (x) dW_c + m_s (x) dW_s                                                  (eq. 2)
    L = || (D + dW_m)(x_c, p_c) - (D + dW_c)(x_c, p_c) ||^2
      + || (D + dW_m)(x_s, p_s) - (D + dW_s)(x_s, p_s) ||^2 + lambda sum_l |m_c . m_s|    (eq. 3)

D is the base model, x_c and x_s noised content and style images under their prompts. m_c and m_s scale the columns of
the updates (the inputs of a layer), so `mask_dim: in` is the paper; DuoLoRA's account of ZipLoRA scales the rows.

Against the direct merge: masks i (or o), learned from all ones with Adam, until the similarity has come down to zero.

Where the paper leaves room: the reconstruction terms are mean squared errors, as in the community's code (the paper
writes a norm). |m_c . m_s|, which the paper calls cosine similarity, is the mean of |m_c,i m_s,i| over the entries of a
layer (`similarity: dot`, as in the community's code) or |cos(m_c, m_s)| (`cosine`, as in LoRA.rar's re-run); and it is
the mean over the layers here (`layers: mean`), so that its weight against the reconstruction does not depend on how
many layers a UNet has. Summed over the 560 layers of SDXL as in the community's code (`layers: sum`) it outweighs the
reconstruction by orders of magnitude.

`ziplora_mkshing` is that code (mkshing/ziplora-pytorch): lr 5e-5, at which 100 steps of Adam move a mask by at most
0.005, and the similarity summed over the layers.
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
        mask_dim: "in" masks columns of the update, "out" rows.
        lambda_similarity: Weight of the similarity.
        similarity: "dot" or "cosine".
        layers: "mean" or "sum" of the similarity over the layers.
        stop_at: Stop if the weighted similarity is at most this; None makes every step.
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
        """sum_l |m_c . m_s| or its mean; of more than two adapters, summed over the couples."""
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
