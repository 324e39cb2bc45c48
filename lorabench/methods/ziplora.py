"""ZipLoRA: Any Subject in Any Style by Effectively Merging LoRAs (Shah et al., ECCV 2024, arXiv 2311.13600).

    dW_m = m_c (x) dW_c + m_s (x) dW_s                                                  (eq. 2)
    L = || (D + dW_m)(x_c, p_c) - (D + dW_c)(x_c, p_c) ||^2
      + || (D + dW_m)(x_s, p_s) - (D + dW_s)(x_s, p_s) ||^2 + lambda sum_l |m_c . m_s|    (eq. 3)

D is the base model, x_c and x_s noised content and style images under their prompts. m_c and m_s scale the columns of
the updates (the inputs of a layer), so `mask_dim: in` is the paper; DuoLoRA's account of ZipLoRA scales the rows.

Against the naive sum: gates i (or o), learned from all ones with Adam.

Where the paper leaves room: the reconstruction terms are mean squared errors, as in the community's code (the paper
writes a norm). |m_c . m_s| is the mean over the entries of a layer and over the layers, not the sum over the layers:
its weight against the reconstruction must not depend on how many layers a UNet has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabench.errors import UserError
from lorabench.method import FitSpec, Method, Site

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.adapters import Gates
    from lorabench.passes import MergeStep


@dataclass(frozen=True, kw_only=True)
class ZipLoRA(Method):
    """mask_dim: "in" (columns) or "out" (rows).  similarity: lambda."""

    fit: FitSpec
    mask_dim: str
    similarity: float

    def __post_init__(self) -> None:
        if self.mask_dim not in ("in", "out"):
            raise UserError(f"method.mask_dim={self.mask_dim} is unknown; type method.mask_dim=in or =out")

    def gates(self, site: Site, seed: int) -> tuple[Gates, ...]:
        import torch

        from lorabench.adapters import Gates

        if self.mask_dim == "in":
            return tuple(Gates(i=torch.ones(site.in_features)) for _ in site.ranks)
        return tuple(Gates(o=torch.ones(site.out_features)) for _ in site.ranks)

    def loss(self, step: MergeStep, gates: Mapping[str, tuple[Gates, ...]]) -> dict[str, Tensor]:
        import torch

        e_c, e_s = step.teachers()
        e_mc, e_ms = step.merged(step.content, step.style)
        overlaps = torch.stack([(m_c.only() * m_s.only()).abs().mean() for m_c, m_s in gates.values()])
        return {
            "content": (e_mc - e_c).square().mean(),
            "style": (e_ms - e_s).square().mean(),
            "similarity": self.similarity * overlaps.mean(),
        }
