"""Naive joint training, the baseline of UnZipLoRA (arXiv 2412.04465): two LoRAs on one image under one prompt.

    minimize_{D_c, U_c, D_s, U_s}  E || e_{W + U_c D_c + U_s D_s}(x_t, t, full prompt) - target ||^2

Only the random initial factors decide which adapter learns the content and which the style.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorabench.base import UserError
from lorabench.config.schemas import LoRASpec
from lorabench.data.concepts import ROLES
from lorabench.data.pairs import Pair
from lorabench.data.stylised import stylised
from lorabench.personalization.training import Environment, Images, Job, Output, Training

if TYPE_CHECKING:
    from lorabench.lora.adapter import LoRA
    from lorabench.models.model import DiffusionModel


@dataclass(frozen=True)
class NaiveJob(Job):
    """Both adapters of a stylized image."""

    def run(self, model: DiffusionModel, env: Environment) -> dict[str, LoRA]:
        from lorabench.personalization.dreambooth import personalize_together

        return personalize_together(model, self.concept, self.recipe, env, ROLES)

    def learned(self, lora: LoRA) -> int:
        return lora.parameters()


@dataclass(frozen=True, kw_only=True)
class JointNaive(Training):
    """Two adapters for each subject in each style."""

    images: ClassVar[Images] = "stylised"

    def outputs(self, pair: Pair, recipe: LoRASpec) -> list[Output]:
        for name, wanted in (("text_encoders", recipe.text_encoders), ("prior_weight", recipe.prior_weight)):
            if wanted:
                raise UserError(f"lora.{name}={wanted} is not part of method/training=joint_naive; leave it out")
        job = NaiveJob(stylised(pair), recipe, f"{pair.name} together")
        return [Output(job, concept.role, concept.role, concept) for concept in pair.concepts]
