"""LoRA Composite (Zhong et al., Multi-LoRA Composition, TMLR 2024, arXiv 2402.16843): every LoRA guides by itself.

    eps = 1/K sum_k [ e_k(x, "") + g (e_k(x, p) - e_k(x, "")) ]        (e_k: the network with LoRA k alone,
                                                                      at strength w)

Against the direct merge: one LoRA a branch, in 2 K branches that are rows of one forward (K with g = 1), so it costs K
times as much to sample and no single file does it. All branches have the same prompt, with all identifiers. w is 0.8 in
the released code, as in the merge that it is compared with (ablation=lora_scale); here all methods have 1. Text
encoders keep all LoRAs, as the prompt is encoded once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lorabench.data.pairs import Role
from lorabench.merging.method import Method
from lorabench.sampling.branches import Branch


@dataclass(frozen=True, kw_only=True)
class LoRAComposite(Method):
    """lora_scale: w."""

    exports: ClassVar[bool] = False

    lora_scale: float

    def guidance(self, cfg: float, roles: Sequence[Role]) -> list[Branch]:
        count = len(roles)
        alone = [tuple(self.lora_scale * (k == other) for other in range(count)) for k in range(count)]
        plain = [Branch((1 - cfg) / count, scale, None) for scale in alone]
        return [*plain, *(Branch(cfg / count, scale, "prompt") for scale in alone)]
