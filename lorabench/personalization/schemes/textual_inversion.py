"""Textual inversion (Gal et al., ICLR 2023, arXiv 2208.01618): one learned token per concept and no LoRA.

The token is the identifier in the captions and prompts ("sks" in "a sks mug", "szn" in "a mug in szn style"), so that
prompts are those of all other methods. It has one vector in each text encoder. See lorabench/personalization/tokens.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorabench.base import UserError
from lorabench.config.recipe import token_recipe
from lorabench.config.schemas import LoRASpec
from lorabench.config.settings import setting
from lorabench.data.pairs import Pair
from lorabench.personalization.training import Environment, Job, Output, Training

if TYPE_CHECKING:
    from lorabench.lora.adapter import LoRA
    from lorabench.models.model import DiffusionModel


@dataclass(frozen=True)
class TokenJob(Job):
    """The token of one concept."""

    def run(self, model: DiffusionModel, env: Environment) -> dict[str, LoRA]:
        from lorabench.personalization.tokens import invert

        return {"token": invert(model, self.concept, self.recipe, env)}

    def learned(self, lora: LoRA) -> int:
        return sum(vectors.numel() for encoders in lora.tokens.values() for vectors in encoders.values())


@dataclass(frozen=True, kw_only=True)
class TextualInversion(Training):
    """A token for each concept.

    Args:
        token_lr: Learning rate of the embeddings.
    """

    has_factors: ClassVar[bool] = False

    token_lr: float = setting(above=0)

    def outputs(self, pair: Pair, recipe: LoRASpec) -> list[Output]:
        check_tokens(pair)
        spec = token_recipe(recipe, self.token_lr)
        return [
            Output(TokenJob(concept, spec, f"{concept.name} as a token"), "token", concept.role, concept)
            for concept in pair.concepts
        ]


def check_tokens(pair: Pair) -> None:
    """Check that each concept has a token of its own.

    Raises:
        UserError: If several subjects or styles share one.
    """
    if not pair.is_single:
        raise UserError(
            f"{pair.name} has one token for several subjects or styles, so a token cannot be learned for each; "
            "use single subjects and styles"
        )
