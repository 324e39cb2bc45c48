"""The trainings of DuoLoRA's released scripts: DreamBooth-LoRA with fewer steps for the content.

The released script of the content LoRA stops after a tenth of the steps of the style LoRA. The paper does not mention
it (arXiv 2504.13206), so the default trains both for the same number (`ablation=short_content_lora`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lorabench.config.schemas import LoRASpec
from lorabench.config.settings import setting
from lorabench.data.pairs import Pair
from lorabench.personalization.schemes.dreambooth import dreambooth
from lorabench.personalization.training import Output, Training


@dataclass(frozen=True, kw_only=True)
class DuoLoRATraining(Training):
    """DreamBooth with a shorter training of the contents.

    Args:
        content_lora_steps: Steps of a content LoRA as a share of `lora.steps`.
    """

    content_lora_steps: float = setting(least=0, most=1)

    def outputs(self, pair: Pair, recipe: LoRASpec) -> list[Output]:
        if self.content_lora_steps == 1:
            return [dreambooth(concept, recipe) for concept in pair.concepts]
        steps = max(1, round(recipe.steps * self.content_lora_steps))
        short = replace(recipe, steps=steps)
        contents = [dreambooth(concept, short, f", {steps} steps") for concept in pair.contents]
        return contents + [dreambooth(concept, recipe) for concept in pair.styles]
