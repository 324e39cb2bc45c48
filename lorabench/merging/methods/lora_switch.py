"""LoRA Switch (Zhong et al., Multi-LoRA Composition, TMLR 2024, arXiv 2402.16843): one LoRA at a time, in turn.

    scale_k(i) = w  if  floor(i / tau) mod K = k,  else 0        (i: index of the step, K: number of LoRAs)

Against the direct merge: scales by step, so no single file does it. Any number of LoRAs, contents first. In the
released
code the callback that switches comes after a step, so the first turn has one step more (`late`), and every LoRA has a
strength of w = 0.8, as in the merge that it is compared with (ablation=lora_scale); here all methods have 1. Text
encoders keep all LoRAs, as the prompt is encoded once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorabench.base import UserError
from lorabench.merging.method import Method
from lorabench.models.layer import Layer
from lorabench.sampling.branches import Scale

if TYPE_CHECKING:
    from lorabench.lora.adapter import LoRA


@dataclass(frozen=True, kw_only=True)
class LoRASwitch(Method):
    """tau: steps of a turn.  late: the first turn has one step more.  lora_scale: w."""

    exports: ClassVar[bool] = False

    tau: int
    late: bool
    lora_scale: float

    def __post_init__(self) -> None:
        if self.tau < 1:
            raise UserError(f"method.tau={self.tau} is no number of steps; type method.tau=5")

    def strengths(self, loras: Sequence["LoRA"], layers: Mapping[str, Layer], steps: int) -> Scale:
        def scale(name: str, progress: float) -> tuple[float, ...]:
            index = round(progress * steps)
            turn = max(index - self.late, 0) // self.tau % len(loras)
            return tuple(self.lora_scale * (k == turn) for k in range(len(loras)))

        return scale
