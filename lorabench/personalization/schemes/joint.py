"""Joint training: one LoRA by DreamBooth (Ruiz et al., CVPR 2023, arXiv 2208.12242) on the images of both concepts.

    minimize  E_{image of the subject or of the style, eps, t} || e_{W + U D}(x_t, t, prompt) - eps ||^2

The adapter sees as many images of each concept under their own captions, for as many steps as separate adapters take
together. No other pair can use it, so its training counts as the cost of the method.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lorabench.config.schemas import LoRASpec
from lorabench.data.pairs import Pair, joined
from lorabench.personalization.schemes.dreambooth import DreamBoothJob
from lorabench.personalization.training import Output, Training


@dataclass(frozen=True, kw_only=True)
class Joint(Training):
    """One adapter that holds all concepts of a pair."""

    def outputs(self, pair: Pair, recipe: LoRASpec) -> list[Output]:
        concept = joined(pair)
        longer = replace(recipe, steps=recipe.steps * len(pair.concepts))
        return [Output(DreamBoothJob(concept, longer, concept.name), "lora", None, concept)]
