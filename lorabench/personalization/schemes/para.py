"""PaRa (Chen et al., ICLR 2025, arXiv 2406.05641): a concept is learned by reducing the rank of the weights.

    W' = W - Q Q^T W,    B = Q R        learned: B [out, rank]

A basis has half as many parameters as a LoRA of the same rank. `method/merge=para` removes the subspaces of all
concepts together; every other merge treats the change as an ordinary adapter (`up` = -Q, `down` = Q^T W).

The layers of `lora.targets` are changed, as LoRA changes them. The paper's learning rate could not be found, so the
recipe of all methods serves. A random basis is far from the plain model at the first step: it removes rank / out of the
output of every layer. `basis_init=bottom_svd` starts from the directions that a layer uses least.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabench.base import seed_of
from lorabench.config.recipe import check_without
from lorabench.config.schemas import LoRASpec
from lorabench.config.settings import setting
from lorabench.data.pairs import Pair
from lorabench.personalization.training import Environment, Job, Output, Training

if TYPE_CHECKING:
    from lorabench.lora.adapter import LoRA
    from lorabench.models.model import DiffusionModel

INITS = ("random", "bottom_svd")


@dataclass(frozen=True)
class ParaJob(Job):
    """The bases of one concept."""

    init: str = "random"

    @property
    def params(self) -> dict:
        return {**super().params, "init": self.init}

    def run(self, model: DiffusionModel, env: Environment) -> dict[str, LoRA]:
        from lorabench.personalization.rank_reduction import learn_bases

        seed = seed_of("para", self.concept.identity(), env.seed)
        ranks = self.ranks(model.layers)
        [lora] = learn_bases(model, [self.concept.images], ranks, self.init, self.recipe, seed, env)
        return {"lora": lora}

    def learned(self, lora: LoRA) -> int:
        return lora.parameters("up")


@dataclass(frozen=True, kw_only=True)
class Para(Training):
    """A rank reduction for each concept.

    Args:
        basis_init: Start of B, "random" or "bottom_svd".
    """

    basis_init: str = setting(options=INITS)

    def outputs(self, pair: Pair, recipe: LoRASpec) -> list[Output]:
        check_without(recipe, "method/training=para")
        return [
            Output(ParaJob(each, recipe, f"{each.name} by rank reduction", self.basis_init), "lora", each.role, each)
            for each in pair.concepts
        ]
