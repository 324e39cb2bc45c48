"""The joint model of UnZipLoRA (arXiv 2412.04465): each adapter reads the prompt that it was trained with.

    eps = e(x, "", "", "") + g (e(x, p, p_c, p_s) - e(x, "", "", ""))

    K or V = W p + sum_c dW_c p_c + sum_s dW_s p_s     (cross-attention; other layers have one input for all)

p is the prompt of all methods ("a sks dog in ink style"), p_c the same without the style ("a sks dog"), and p_s the
same without the identifier of the content ("a dog in ink style"). With equal prompts this is plain sampling. The keys
and values depend on three prompts, so no single file expresses the method; `method/sampling=plain` is direct addition,
in which all adapters read p. The rule needs no LoRAs of UnZipLoRA: it goes with every training of separate adapters.
"""

from dataclasses import dataclass

from lorabench.data.concepts import Role
from lorabench.data.scenes import Wording
from lorabench.sampling.rule import Branch, Context, Sampling

PROMPTS: dict[Role, Wording] = {"content": "subject", "style": "styled"}


@dataclass(frozen=True, kw_only=True)
class ThreePrompts(Sampling):
    """Guidance with prompts of the adapters' own.

    Args:
        prompt_separation: False lets all adapters read the prompt of all methods, as they were trained without it.
    """

    prompt_separation: bool

    def branches(self, context: Context) -> list[Branch] | None:
        if not self.prompt_separation:
            return None  # plain sampling, with any kind of guidance
        scales, guidance = (1.0,) * len(context.roles), context.guidance
        own: tuple[Wording | None, ...] = tuple(PROMPTS[role] for role in context.roles)
        return [Branch(1 - guidance, scales, None), Branch(guidance, scales, "prompt", own)]
