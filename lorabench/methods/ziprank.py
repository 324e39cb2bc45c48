"""ZipRank: the masks of DuoLoRA without its priors and its cycle (Roy et al., ICCV 2025, arXiv 2504.13206, first row of
its ablation table).

    dW_m = A_c M_c B_c + A_s M_s B_s,   M = diag(m), m in R^r
    L = || e_m(x_c, p_c) - e_c(x_c, p_c) ||^2 + || e_m(x_s, p_s) - e_s(x_s, p_s) ||^2

Against the naive sum: gates r, learned from all ones with Adam. Against ZipLoRA: r numbers an adapter and layer instead
of d_in, and no similarity term.

Where the paper leaves room: the masks act on the factors as they are trained, as in the released code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabench.method import FitSpec, Method, Site

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.adapters import Gates
    from lorabench.passes import MergeStep


@dataclass(frozen=True, kw_only=True)
class ZipRank(Method):
    fit: FitSpec

    def gates(self, site: Site, seed: int) -> tuple[Gates, ...]:
        import torch

        from lorabench.adapters import Gates

        return tuple(Gates(r=torch.ones(rank)) for rank in site.ranks)

    def loss(self, step: MergeStep, gates: Mapping[str, tuple[Gates, ...]]) -> dict[str, Tensor]:
        e_c, e_s = step.teachers()
        e_mc, e_ms = step.merged(step.content, step.style)
        return {"content": (e_mc - e_c).square().mean(), "style": (e_ms - e_s).square().mean()}
