"""DreamBooth-LoRA: each concept trains its own adapter on its own images, see lorabench.personalization.dreambooth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabench.config.schemas import LoRASpec
from lorabench.data.concepts import Concept
from lorabench.data.pairs import Pair
from lorabench.personalization.training import Environment, Job, Output, Training

if TYPE_CHECKING:
    from lorabench.lora.adapter import LoRA
    from lorabench.models.model import DiffusionModel


@dataclass(frozen=True)
class DreamBoothJob(Job):
    """DreamBooth on the images of one concept."""

    @property
    def class_images(self) -> int:
        return self.recipe.prior_images if self.recipe.prior_weight else 0

    def run(self, model: DiffusionModel, env: Environment) -> dict[str, LoRA]:
        from lorabench.personalization.dreambooth import personalize

        return {"lora": personalize(model, self.concept, self.recipe, env)}

    def learned(self, lora: LoRA) -> int:
        return lora.parameters()


@dataclass(frozen=True, kw_only=True)
class DreamBooth(Training):
    """An adapter for each concept, shared by all methods that train this way."""

    def outputs(self, pair: Pair, recipe: LoRASpec) -> list[Output]:
        return [dreambooth(concept, recipe) for concept in pair.concepts]


def dreambooth(concept: Concept, recipe: LoRASpec, note: str = "") -> Output:
    """Return the adapter of a concept with its own role.

    Args:
        concept: The concept.
        recipe: Settings of the training.
        note: Added to the name if the training differs from that of other methods.
    """
    return Output(DreamBoothJob(concept, recipe, concept.name + note), "lora", concept.role, concept)
