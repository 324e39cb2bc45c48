"""LoRA Switch: activate one adapter at a time and change it every `tau` steps.

    s_k(i) = w  if  floor(i / tau) mod K = k,  else 0     (i: sampling step, K: number of adapters, contents first)

All adapters stay active on the text encoders, because the prompt is encoded once. The released code uses w = 0.8
instead of 1 (`ablation=lora_scale`) and switches after the step, so its first turn has tau + 1 steps
(`ablation=late_switch`).

Source: Zhong et al., Multi-LoRA Composition, TMLR 2024, arXiv 2402.16843.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabench.config.settings import setting
from lorabench.sampling.rule import Context, Sampling

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.adapter import LoRA


@dataclass(frozen=True, kw_only=True)
class Switch(Sampling):
    """One active adapter at a time.

    Args:
        tau: Sampling steps per turn.
        late: Add one step to the first turn.
        lora_scale: Scale w of the active adapter.
    """

    tau: int = setting(least=1)
    late: bool
    lora_scale: float

    def scales(self, parts: Sequence[LoRA], context: Context) -> Tensor:
        import torch

        count = len(context.roles)
        turns = [max(step - self.late, 0) // self.tau % count for step in range(context.steps)]
        active = torch.tensor([[k == turn for k in range(count)] for turn in turns], dtype=torch.float64)
        return (self.lora_scale * active)[:, None].expand(-1, len(context.layers), -1)
