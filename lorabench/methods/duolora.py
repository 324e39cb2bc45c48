"""DuoLoRA: Cycle-consistent and Rank-disentangled Content-Style Personalization (Roy et al., ICCV 2025, 2504.13206).

    dW_m = A_c diag(m_c) B_c + A_s diag(m_s) B_s
    L = L_content + L_style + lambda_prior L_prior + lambda_cycle (L_cycle_style + L_cycle_content)

    L_content = || e_m(x_c, p_c) - e_c(x_c, p_c) ||^2,   L_style = || e_m(x_s, p_s) - e_s(x_s, p_s) ||^2
    L_prior = ||m_dom||_1 + lambda max(0, ||m_minor||_* - ||m_dom||_*)       a layer; ||m||_* = ||diag(m)||_* = sum |m|
    L_cycle_style   = || e_csc - e_c(x_c, p_c) ||^2      content image, add style, remove style
    L_cycle_content = || e_scs - e_s(x_s, p_s) ||^2      style image, add content, remove content

e_m, e_c and e_s are the predictions with the merged, the content and the style adapter. The dominant adapter of a layer
is the content LoRA below the middle of the resolutions with attention, the style LoRA above it: on SDXL down_blocks.2,
mid_block, up_blocks.0 against down_blocks.1, up_blocks.1. Its mask starts with more ones.

Against the naive sum: gates r, learned with Adam. Against ZipRank: the prior and the cycle.

Which reading was taken where the paper is silent:
- Constyle is one step at one timestep, without decoding. To add style to a content image: e_m(x_c, p_cs), its clean
  estimate, noised again with the same eps and t; to remove it: e_c of that, under p_c. The gradient flows through the
  removing pass into the adding pass, the only one with masks. (In the released code the cycle's targets are detached
  and the removing pass uses the adapter that added; a merge then learns nothing from the way round.) The cycle by
  itself is least where nothing is added; the reconstruction terms, a hundred times its weight, forbid that.
- The predictions stand for the images, in the reconstruction as in the cycle.
- L_prior is the mean over the entries of a mask and over the layers with a prior: its weight against the reconstruction
  must depend neither on the rank nor on the number of layers.
- Which entries start as ones is drawn with a seed; the others start as zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from lorabench.errors import UserError
from lorabench.method import FitSpec, Method, Site
from lorabench.seeds import seed_of

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.adapters import Gates
    from lorabench.passes import MergeStep, Noised


CONTENT, STYLE = 0, 1


class Cycle(NamedTuple):
    """One way round of Constyle: images and the LoRA that they are the domain of, and its own prediction of them."""

    name: str
    weight: float
    start: Noised
    adapter: int
    reference: Tensor


@dataclass(frozen=True, kw_only=True)
class DuoLoRA(Method):
    """prior: lambda_prior.  prior_hinge: lambda inside L_prior.  style_cycle, content_cycle: lambda_cycle of each.

    dominant_ones, minor_ones: shares of the two masks of a layer that start as ones.
    """

    fit: FitSpec
    prior: float
    prior_hinge: float
    style_cycle: float
    content_cycle: float
    dominant_ones: float
    minor_ones: float

    def __post_init__(self) -> None:
        for name in ("dominant_ones", "minor_ones"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"method.{name}={getattr(self, name)} is no share; type method.{name}=<0 to 1>")

    def gates(self, site: Site, seed: int) -> tuple[Gates, ...]:
        from lorabench.adapters import Gates

        dominant = dominant_adapter(site)
        shares = [1.0 if dominant is None else self.dominant_ones if k == dominant else self.minor_ones for k in (0, 1)]
        return tuple(
            Gates(r=ones(rank, share, seed_of(seed, site.name, k)))
            for k, (rank, share) in enumerate(zip(site.ranks, shares, strict=True))
        )

    def loss(self, step: MergeStep, gates: Mapping[str, tuple[Gates, ...]]) -> dict[str, Tensor]:
        e_c, e_s = step.teachers()
        cycles = [
            Cycle("style_cycle", self.style_cycle, step.content, CONTENT, e_c),
            Cycle("content_cycle", self.content_cycle, step.style, STYLE, e_s),
        ]
        cycles = [cycle for cycle in cycles if cycle.weight]
        starts = [cycle.start.under(step.both) for cycle in cycles]
        e_mc, e_ms, *e_added = step.merged(step.content, step.style, *starts)
        added = [
            step.renoised(start, e, cycle.start.prompt) for start, e, cycle in zip(starts, e_added, cycles, strict=True)
        ]
        e_back = step.alone(added, [cycle.adapter for cycle in cycles])
        terms = {"content": (e_mc - e_c).square().mean(), "style": (e_ms - e_s).square().mean()}
        for cycle, e in zip(cycles, e_back, strict=True):
            terms[cycle.name] = cycle.weight * (e - cycle.reference).square().mean()
        if self.prior:
            terms["prior"] = self.prior * self.layer_prior(step.sites, gates)
        return terms

    def layer_prior(self, sites: Mapping[str, Site], gates: Mapping[str, tuple[Gates, ...]]) -> Tensor:
        """L_prior, the mean over the layers with a prior and over the entries of a mask."""
        import torch

        terms = []
        for name, site in sites.items():
            dominant = dominant_adapter(site)
            if dominant is not None:
                m_dom, m_minor = gates[name][dominant].only(), gates[name][1 - dominant].only()
                norm, minor_norm = m_dom.abs().sum(), m_minor.abs().sum()
                constraint = (minor_norm - norm).clamp(min=0)
                terms.append((norm + self.prior_hinge * constraint) / max(site.ranks))
        if not terms:
            raise UserError("no layer lies below or above the middle resolution; type ablation=no_layer_prior")
        return torch.stack(terms).mean()


def dominant_adapter(site: Site) -> int | None:
    """CONTENT below the middle of the resolutions with attention, STYLE above it, None in the very middle."""
    if site.depth == 0.5:
        return None
    return CONTENT if site.depth > 0.5 else STYLE


def ones(rank: int, share: float, seed: int) -> Tensor:
    """A mask of zeros and round(share * rank) ones at seeded places."""
    import torch

    order = torch.randperm(rank, generator=torch.Generator().manual_seed(seed))
    return (order < round(share * rank)).float()
