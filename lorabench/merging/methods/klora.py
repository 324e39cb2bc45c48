"""K-LoRA (Ouyang et al., CVPR 2025, arXiv 2502.18461): in each layer and at each step one LoRA alone, without training.

    dW_m = dW_c  if  (S_c / gamma) / (S_s s(p)) > 1,  else dW_s
    S_k = sum of the K = r_c r_s largest |entries of dW_k|
    gamma = mean over layers of sum |dW_c| / sum |dW_s|, then again without the layers that have `trim` times that mean
    s(p) = alpha p + beta        (p = step / steps): content first, style last
    s*(p) = s(p) mod alpha       (`wrap`): style for a moment, then content, then style

Against the direct merge: scales of 0 and 1 by layer and step, so no single file does it.

The released code multiplies no alpha / rank into dW, takes p from a counter of layer calls that is right for 560 layers
and 50 steps alone, and finds S anew in every call; here the LoRAs are as their files say, p is of any number of steps,
and S is found once. K-LoRA is a rule for one content and one style; of several of a role dW_k is their sum, and a layer
that only one role adapts belongs to it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorabench.base import UserError
from lorabench.data.pairs import ROLES, Role
from lorabench.merging.method import Method
from lorabench.models.layer import Layer
from lorabench.sampling.branches import Scale

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.adapter import LoRA


@dataclass(frozen=True, kw_only=True)
class KLoRA(Method):
    """alpha, beta: of s.  wrap: s* instead of s.  trim: gamma leaves out layers of so many times the mean ratio."""

    exports: ClassVar[bool] = False

    alpha: float
    beta: float
    wrap: bool
    trim: float

    def __post_init__(self) -> None:
        if self.alpha <= 0 or self.trim <= 1:
            raise UserError(
                f"method.alpha={self.alpha:g} must be greater than 0 and method.trim={self.trim:g} greater than 1; "
                "type method.alpha=1.5 method.trim=3"
            )

    def s(self, progress: float) -> float:
        """How much the style's sum counts at a step."""
        grown = self.alpha * progress + self.beta
        return grown % self.alpha if self.wrap else grown

    def strengths(self, loras: Sequence["LoRA"], layers: Mapping[str, Layer], steps: int) -> Scale:
        margins = self.margins(loras, layers)

        def scale(name: str, progress: float) -> tuple[float, ...]:
            chosen = "content" if margins[name] > self.s(progress) else "style"
            return tuple(float(role == chosen) for role in layers[name].roles)

        return scale

    def margins(self, loras: Sequence["LoRA"], layers: Mapping[str, Layer]) -> dict[str, float]:
        """S_c / (gamma S_s) by layer of the UNet: content is chosen while s is less."""
        top: dict[str, dict[str, float]] = {}
        ratios = []
        for name, layer in layers.items():
            dense = {role: update(loras, layer, role) for role in ROLES}
            k = 1
            for role in ROLES:
                k *= max(1, sum(layer.ranks[index] for index in layer.of(role)))
            top[name] = {role: 0.0 if each is None else largest(each, k) for role, each in dense.items()}
            masses = [0.0 if each is None else float(each.abs().sum()) for each in dense.values()]
            if all(masses):
                ratios.append(masses[0] / masses[1])
        gamma = trimmed_mean(ratios, self.trim)
        return {
            name: each["content"] / (gamma * each["style"]) if each["style"] else float("inf")
            for name, each in top.items()
        }


def update(loras: Sequence["LoRA"], layer: Layer, role: Role) -> "Tensor | None":
    """The dense update [out, in] of a role at a layer of the UNet; None where it has none."""
    found = [loras[index][layer.name] for index in layer.of(role) if layer.name in loras[index]]
    parts = [each.up.float() @ each.down.float() for each in found]
    return sum(parts[1:], parts[0]) if parts else None


def largest(dense: "Tensor", k: int) -> float:
    """The sum of the k largest absolute entries."""
    flat = dense.abs().flatten()
    return float(flat.topk(min(k, len(flat))).values.sum())


def trimmed_mean(ratios: Sequence[float], trim: float) -> float:
    """The mean, then again of those below `trim` times it; 1 where no layer has both roles.

    >>> trimmed_mean([1.0] * 9 + [100.0], 3.0)
    1.0
    """
    if not ratios:
        return 1.0
    mean = sum(ratios) / len(ratios)
    kept = [ratio for ratio in ratios if ratio < trim * mean]
    return sum(kept) / len(kept)
