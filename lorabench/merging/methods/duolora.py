"""DuoLoRA: rank masks that are learned with a layer prior and a cycle loss.

    dW_m = U_c diag(m_c) S_c V_c^T + U_s diag(m_s) S_s V_s^T
    L = L_content + L_style + lambda_prior L_prior + lambda_cycle (L_cycle_style + L_cycle_content)

    L_content = || e_m(x_c, p_c) - e_c(x_c, p_c) ||^2,   L_style = || e_m(x_s, p_s) - e_s(x_s, p_s) ||^2
    L_prior = ||m_dom||_1 + lambda max(0, ||m_minor||_* - ||m_dom||_*)     per layer; ||m||_* = ||diag(m)||_* = sum |m|
    L_cycle: see lorabench/merging/constyle.py

e_m, e_c and e_s are the predictions with the merged, the content and the style adapter. The prior
(lorabench/merging/priors.py) gives the dominant adapter of a layer, whose mask starts with more ones. If there are
several subjects or styles, all have masks; norms are means over the adapters of a role, and losses are sums.

It differs from the direct merge by masks r, learned with Adam, and from ZipRank by the prior and the cycle.

The paper leaves open, and this code decides:
- Constyle is `through_merge`, the only interpretation in which the masks can learn from the cycle.
- L_prior is the mean over the entries of a mask (`prior_norm: mean`) and over the layers with a prior, so that its
  weight relative to the reconstruction depends neither on the rank nor on the number of layers. With `sum`, as the norm
  is written, it is r times as strong.
- The entries that start as ones are chosen at random with a seed; the others start as zeros.

The released code (aniket004/DuoLoRA at b1e029b) differs from the paper in eleven settings, and from this code's
interpretation in one more. `duolora` has the settings of the paper or the interpretation, `duolora_released` those of
the released code. An ablation changes each of them separately:

    ablation              setting                      released behavior
    released_blocks       prior: released              one block is content; most layers have no prior
    vector_nuclear_norm   nuclear_norm: vector         the "nuclear norm" of a mask is that of a column, ||m||_2
    no_hinge              hinge: false                 ||m_minor||_* - ||m_dom||_* without max(0, .)
    cycle_adapters        remove_with: other           the other LoRA removes (in released_cycle it also added)
    detached_cycle        constyle: detached           no gradient through the cycle
    shared_masks          shared_masks: true           q, k, v and out share a mask, which is updated four times a step
    early_stop            one_step_an_epoch: true      an epoch ends after a step: 100 / (images of a concept) steps
    swapped_lambdas       lambda_cycle, lambda_prior   0.1 and 0.01 instead of 0.01 and 0.1
    ones_init             init: ones                   every mask starts as ones
    short_content_lora    content_lora_steps: 0.1      the content LoRA has a tenth of the style LoRA's steps
    raw_basis             basis: raw                   masks on the trained factors
    summed_prior          prior_norm: sum              (no difference: the paper also writes the norm in this way)

`init: gaussian` is another initialization of the released code: r = randn scaled to [0, 1], m = r if r exceeds the
adapter's threshold, else 0. This code does not reproduce AdamW's decay of 1e-6 per step, clipping at 1, fp16, and
prompts that name both concepts for either image ("a sbu1 slime in szn1 style").

Source: Roy et al., DuoLoRA: Cycle-consistent and Rank-disentangled Content-Style Personalization, ICCV 2025, arXiv
2504.13206.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from lorabench.base import seed_of
from lorabench.config.settings import setting
from lorabench.data.concepts import Role
from lorabench.merging.learned import LearnedMasks
from lorabench.merging.priors import check_dominant, check_prior, dominant_roles, prior_note, read_prior
from lorabench.models.layer import Layer

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.layer import AllMasks, Masks
    from lorabench.merging.step import MergeStep

OTHER: dict[Role, Role] = {"content": "style", "style": "content"}


@dataclass(frozen=True, kw_only=True)
class DuoLoRA(LearnedMasks):
    """Rank masks with a layer prior and a cycle.

    Args:
        basis: Factors that the masks multiply.
        prior: Dominant role of each layer, see lorabench/merging/priors.py.
        lambda_prior: Weight of L_prior.
        prior_norm: "mean" or "sum" over the entries of a mask.
        prior_hinge: lambda inside L_prior.
        hinge: Clamp the difference of the norms at zero.
        nuclear_norm: "diagonal", ||m||_1, or "vector", ||m||_2.
        lambda_cycle: Weight of the cycle losses.
        cycles: The cycle losses to use.
        constyle: "through_merge" or "detached", see lorabench/merging/constyle.py.
        remove_with: LoRA that removes in a cycle: the image's own one or the other one.
        cycle_in: Compare predictions or decoded images.
        init: Initial masks.
        dominant_ones: Share of ones in the initial mask of the dominant adapter, for `init: prior`.
        minor_ones: The same for the other adapter.
        dominant_threshold: Threshold of the dominant adapter, for `init: gaussian`.
        minor_threshold: The same for the other adapter.
        shared_masks: Use one mask for q, k, v and out of an attention module.
        one_step_an_epoch: Make one step per epoch, as the released code does by mistake.
    """

    basis: str = setting(options=("svd", "raw"))
    prior: Any
    lambda_prior: float = setting(least=0)
    prior_norm: str = setting(options=("mean", "sum"))
    prior_hinge: float = setting(least=0)
    hinge: bool
    nuclear_norm: str = setting(options=("diagonal", "vector"))
    lambda_cycle: float = setting(least=0)
    cycles: str = setting(options=("both", "style", "content"))
    constyle: str = setting(options=("through_merge", "detached"))
    remove_with: str = setting(options=("own", "other"))
    cycle_in: str = setting(options=("prediction", "image"))
    init: str = setting(options=("prior", "gaussian", "ones"))
    dominant_ones: float = setting(least=0, most=1)
    minor_ones: float = setting(least=0, most=1)
    dominant_threshold: float = setting(least=0, most=1)
    minor_threshold: float = setting(least=0, most=1)
    shared_masks: bool
    one_step_an_epoch: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "prior", read_prior(self.prior))

    def check(self, layers: Mapping[str, Layer]) -> None:
        check_prior(self.prior, layers)
        if self.lambda_prior:
            check_dominant(dominant_roles(self.prior, layers))

    def note(self, layers: Mapping[str, Layer]) -> str | None:
        return prior_note(self.prior, layers) if self.lambda_prior or self.init != "ones" else None

    def steps(self, images: Sequence[int]) -> int:
        epoch = ceil(max(images) / self.fit.batch)
        return ceil(self.fit.steps / epoch) if self.one_step_an_epoch else self.fit.steps

    def masks(self, layers: Mapping[str, Layer], seed: int) -> AllMasks:
        dominant = dominant_roles(self.prior, layers)
        made: dict[tuple[str, tuple[int, ...]], tuple[Masks, ...]] = {}
        masks = {}
        for name, layer in layers.items():
            owner = attention(name) if self.shared_masks else name
            if (owner, layer.ranks) not in made:
                made[owner, layer.ranks] = self.start(owner, layer, dominant[name], seed)
            masks[name] = made[owner, layer.ranks]
        return masks

    def start(self, name: str, layer: Layer, dominant: Role | None, seed: int) -> tuple[Masks, ...]:
        """Return the initial masks of a layer."""
        import torch

        from lorabench.lora.layer import Masks

        masks = []
        for k, (rank, role) in enumerate(zip(layer.ranks, layer.roles, strict=True)):
            leads = role == dominant
            if self.init == "ones" or (dominant is None and self.init == "prior"):
                masks.append(torch.ones(rank))
            elif self.init == "prior":
                masks.append(ones(rank, self.dominant_ones if leads else self.minor_ones, seed_of(seed, name, k)))
            else:
                threshold = self.dominant_threshold if leads else self.minor_threshold
                masks.append(scaled_gaussian(rank, 0.0 if dominant is None else threshold, seed_of(seed, name)))
        return tuple(Masks(r=mask) for mask in masks)

    def loss(self, step: MergeStep, masks: AllMasks) -> dict[str, Tensor]:
        from lorabench.merging.constyle import constyle

        weights: dict[Role, float] = {
            "content": self.lambda_cycle * (self.cycles != "content"),
            "style": self.lambda_cycle * (self.cycles != "style"),
        }
        choices = self.constyle == "through_merge", self.remove_with == "own", self.cycle_in == "image"
        cycle_terms, predictions, targets = constyle(step, weights, *choices)
        terms = step.reconstruction(predictions, targets) | cycle_terms
        if self.lambda_prior:
            terms["prior"] = self.lambda_prior * self.layer_prior(step.layers, masks)
        return terms

    def layer_prior(self, layers: Mapping[str, Layer], masks: AllMasks) -> Tensor:
        """Return L_prior [pairs], the mean over the layers with a prior."""
        import torch

        terms = []
        for name, role in dominant_roles(self.prior, layers).items():
            if role is not None:
                layer = layers[name]
                dominant, minor = ([masks[name][k].only() for k in layer.of(each)] for each in (role, OTHER[role]))
                excess = self.nuclear(minor) - self.nuclear(dominant)
                size = torch.stack([mask.abs().sum(-1) for mask in dominant]).mean(0)
                term = size + self.prior_hinge * (excess.clamp(min=0) if self.hinge else excess)
                terms.append(term if self.prior_norm == "sum" else term / max(layer.ranks))
        return torch.stack(terms).mean(0)

    def nuclear(self, masks: Sequence[Tensor]) -> Tensor:
        """Return ||diag(m)||_* = ||m||_1 or, as in the released code, the nuclear norm of a column, ||m||_2."""
        import torch

        order = 1 if self.nuclear_norm == "diagonal" else 2
        return torch.stack([torch.linalg.vector_norm(mask, order, dim=-1) for mask in masks]).mean(0)


def attention(layer: str) -> str:
    """Return the attention module of a projection: the path up to attn1 or attn2."""
    return layer.removesuffix(".0").rpartition(".")[0]


def ones(rank: int, share: float, seed: int) -> Tensor:
    """Return a mask of zeros with round(share * rank) ones at random places."""
    import torch

    order = torch.randperm(rank, generator=torch.Generator().manual_seed(seed))
    return (order < round(share * rank)).float()


def scaled_gaussian(rank: int, threshold: float, seed: int) -> Tensor:
    """Return r = randn scaled to [0, 1], with values up to the threshold set to 0. Supports are nested for one seed."""
    import torch

    draw = torch.randn(rank, generator=torch.Generator().manual_seed(seed))
    r = (draw - draw.min()) / (draw.max() - draw.min()).clamp(min=1e-12)
    return r * (r > threshold)
