"""The training of PairCustomization (Jones et al., arXiv 2405.01536): one image before and after styling.

It trains a content adapter on the image before styling and a style adapter on the difference that styling makes, see
lorabench/personalization/aligned.py. Only a world that can render the same image twice has such images. The styled
image is the image that other methods should generate (in a pose that is not scored). So a row of this training shows
the effect of known ground truth and does not compare merging.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorabench.config.schemas import LoRASpec
from lorabench.data.catalogue import aligned
from lorabench.data.pairs import Pair
from lorabench.personalization.phases import check_aligned, updates
from lorabench.personalization.training import Environment, Images, Job, Output, Training

if TYPE_CHECKING:
    from lorabench.lora.adapter import LoRA
    from lorabench.models.model import DiffusionModel


@dataclass(frozen=True)
class PairJob(Job):
    """Both adapters of one subject in one style."""

    @property
    def steps(self) -> int:
        return updates(self.recipe.steps)

    def run(self, model: DiffusionModel, env: Environment) -> dict[str, LoRA]:
        from lorabench.personalization.aligned import train_aligned

        loras = train_aligned(model, self.concept, self.recipe, env)
        return {"content": loras["content"], "style": loras["style"]}

    def learned(self, lora: LoRA) -> int:
        return lora.parameters("up")


@dataclass(frozen=True, kw_only=True)
class PairTraining(Training):
    """Two adapters for each subject in each style."""

    images: ClassVar[Images] = "aligned"

    def outputs(self, pair: Pair, recipe: LoRASpec) -> list[Output]:
        check_aligned(recipe)
        jobs = {}
        for couple in pair.couples or (pair,):
            [content], [style] = couple.contents, couple.styles
            concept = aligned(content, style, couple.prompt)
            jobs[content, style] = PairJob(concept, recipe, concept.name)
        contents = [Output(jobs[content, pair.styles[0]], "content", "content", content) for content in pair.contents]
        return contents + [Output(jobs[pair.contents[0], style], "style", "style", style) for style in pair.styles]
