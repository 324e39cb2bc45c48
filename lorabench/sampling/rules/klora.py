"""K-LoRA (Ouyang et al., CVPR 2025, arXiv 2502.18461): in each layer and step only one adapter, without training.

    dW_m = dW_c  if  (S_c / gamma) / (S_s s(p)) > 1,  else dW_s
    S_k = sum of the K = r_c r_s largest |entries of dW_k|
    gamma = sum over layers of sum |dW_c| / sum over layers of sum |dW_s|                       (balance: sums)
    gamma = mean over layers of sum |dW_c| / sum |dW_s|, then again without the layers that have `trim` times that mean
                                                                                                (balance: trimmed_mean)
    s(p) = alpha p + beta        (p = step / steps): content first, style last
    s*(p) = s(p) mod alpha       (`wrap`): style for a moment, then content, then style

The publication has gamma as the ratio of sums and s* with an offset of 1.3; the released code has the trimmed mean and
1.275. Both are presets: `ablation=klora_paper`, `klora_star_paper` and `klora_star`. The rule is the same for SDXL and
FLUX.1. The publication shows images of FLUX.1 with 28 steps and reports no scores of them.

The released code does not multiply dW by alpha / rank, takes p from a counter of layer calls that is right only for 560
layers and 50 steps, and computes S again in every call. Here the adapters are as their files define them, p works with
any number of steps, and S is computed once. K-LoRA is a rule for one content and one style; with several of a role dW_k
is their sum, and a layer that only one role adapts belongs to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabench.config.settings import setting
from lorabench.data.concepts import ROLES, Role
from lorabench.models.layer import Layer
from lorabench.sampling.rule import Context, Sampling

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.adapter import LoRA


@dataclass(frozen=True, kw_only=True)
class KLoRA(Sampling):
    """Choice by the largest entries.

    Args:
        alpha: Slope of s.
        beta: Value of s at the first step.
        wrap: Use s* instead of s.
        balance: Definition of gamma, "trimmed_mean" or "sums".
        trim: The trimmed mean ignores layers with more than this multiple of the mean ratio.
    """

    alpha: float = setting(above=0)
    beta: float
    wrap: bool
    balance: str = setting(options=("trimmed_mean", "sums"))
    trim: float = setting(above=1)

    def s(self, progress: float) -> float:
        """Return the weight of the style's sum at a share of the steps."""
        grown = self.alpha * progress + self.beta
        return grown % self.alpha if self.wrap else grown

    def scales(self, parts: Sequence[LoRA], context: Context) -> Tensor:
        margins = self.margins(parts, context.layers)
        steps = [self.s(step / context.steps) for step in range(context.steps)]
        chosen: list[list[Role]] = [
            ["content" if margins[name] > s else "style" for name in context.layers] for s in steps
        ]
        return chosen_scales(chosen, context.roles)

    def margins(self, parts: Sequence[LoRA], layers: Mapping[str, Layer]) -> dict[str, float]:
        """Return S_c / (gamma S_s) by layer; the content is chosen while s is smaller."""
        top: dict[str, dict[str, float]] = {}
        masses: list[tuple[float, float]] = []  # content and style, in layers that have both
        for name, layer in layers.items():
            dense = {role: update(parts, layer, role) for role in ROLES}
            k = 1
            for role in ROLES:
                k *= max(1, sum(layer.ranks[index] for index in layer.of(role)))
            top[name] = {role: 0.0 if each is None else largest(each, k) for role, each in dense.items()}
            content, style = (0.0 if each is None else float(each.abs().sum()) for each in dense.values())
            if content and style:
                masses.append((content, style))
        gamma = self.gamma(masses)
        return {
            name: each["content"] / (gamma * each["style"]) if each["style"] else float("inf")
            for name, each in top.items()
        }

    def gamma(self, masses: Sequence[tuple[float, float]]) -> float:
        """Return the balance of the adapters.

        Args:
            masses: Sums of the absolute entries of content and style in each layer that both adapt.
        """
        if self.balance == "sums" and masses:
            content, style = (sum(each) for each in zip(*masses, strict=True))
            return content / style
        return trimmed_mean([content / style for content, style in masses], self.trim)


def chosen_scales(chosen: Sequence[Sequence[Role]], roles: Sequence[Role]) -> Tensor:
    """Return [steps, layers, adapters]: one for the adapters of the role chosen at a step and layer, else zero."""
    import torch

    scales = [[[float(role == choice) for role in roles] for choice in step] for step in chosen]
    return torch.tensor(scales, dtype=torch.float64)


def update(parts: Sequence[LoRA], layer: Layer, role: Role) -> Tensor | None:
    """Return the dense update [out, in] of a role at a layer, or None if it has none."""
    found = [parts[index][layer.name] for index in layer.of(role) if layer.name in parts[index]]
    dense = [each.up.float() @ each.down.float() for each in found]
    return sum(dense[1:], dense[0]) if dense else None


def largest(dense: Tensor, k: int) -> float:
    """Return the sum of the k largest absolute entries."""
    flat = dense.abs().flatten()
    return float(flat.topk(min(k, len(flat))).values.sum())


def trimmed_mean(ratios: Sequence[float], trim: float) -> float:
    """Return the mean of the ratios below `trim` times their mean; 1 if no layer has both roles.

    >>> trimmed_mean([1.0] * 9 + [100.0], 3.0)
    1.0
    """
    if not ratios:
        return 1.0
    mean = sum(ratios) / len(ratios)
    kept = [ratio for ratio in ratios if ratio < trim * mean]
    return sum(kept) / len(kept)
