"""StyleDrop (Sohn et al., NeurIPS 2023, arXiv 2306.00983) as the field runs it on SDXL: the style by its LoRA, the
content by text.

    e_s(x, p):   the style LoRA alone, under a prompt that names the subject by its class word ("a dog in szn style")

Against the naive sum: gain 0 for content LoRAs, and a prompt without the subject's identifier, so it draws some dog and
not this one; the floor in content of a method that has the style. It learns nothing beside the style LoRA.

Two-term guidance (`lambda_a`, ablation=two_term_guidance) is the publication's, whose logits become predictions:

    eps = e(x, "") + lambda_b (e(x, p) - e(x, "")) + lambda_a (e_s(x, p) - e(x, p))        (e: without any LoRA)

StyleDrop tunes adapters of a masked transformer (Muse) and trains a second round on its own best images; neither is
repeated here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lorabench.data.pairs import Role
from lorabench.method import Branch, Method


@dataclass(frozen=True, kw_only=True)
class StyleDrop(Method):
    """lambda_a: weight of the LoRA's difference; None is classifier-free guidance with the LoRA in both terms.

    lambda_b: of the text's, beside lambda_a; None is generate.guidance.
    """

    exports: ClassVar[bool] = False

    lambda_a: float | None
    lambda_b: float | None

    def guidance(self, scale: float, roles: Sequence[Role]) -> list[Branch]:
        style, nothing = tuple(float(role == "style") for role in roles), (0.0,) * len(roles)
        if self.lambda_a is None:
            plain, styled = [Branch(1 - scale, style, None)], Branch(scale, style, "styled")
            return [*(plain if scale != 1 else []), styled]
        text = scale if self.lambda_b is None else self.lambda_b
        return [
            Branch(1 - text, nothing, None),
            Branch(text - self.lambda_a, nothing, "styled"),
            Branch(self.lambda_a, style, "styled"),
        ]
