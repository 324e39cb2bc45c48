"""LoRA Composite: every adapter guides by itself, and their predictions are averaged.

    eps = 1/K sum_k [ e_k(x, "") + g (e_k(x, p) - e_k(x, "")) ]     (e_k: the network with only adapter k, at scale w)

Sampling costs K times as much: 2 K branches, or K without guidance (g = 1). All branches have the same prompt with all
identifiers, and the text encoders keep all adapters, because the prompt is encoded once. The released code uses w = 0.8
instead of 1 (`ablation=lora_scale`).

Source: Zhong et al., Multi-LoRA Composition, TMLR 2024, arXiv 2402.16843.
"""

from dataclasses import dataclass

from lorabench.sampling.rule import Branch, Context, Sampling


@dataclass(frozen=True, kw_only=True)
class Composite(Sampling):
    """One branch per adapter.

    Args:
        lora_scale: Scale w of the adapter.
    """

    lora_scale: float

    def branches(self, context: Context) -> list[Branch]:
        count, guidance = len(context.roles), context.guidance
        single = [tuple(self.lora_scale * (k == other) for other in range(count)) for k in range(count)]
        unconditional = [Branch((1 - guidance) / count, scales, None) for scales in single]
        return [*unconditional, *(Branch(guidance / count, scales, "prompt") for scales in single)]
