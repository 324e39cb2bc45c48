"""Inspiration Tree (Vinker et al., SIGGRAPH Asia 2023, arXiv 2305.18203): a token for content and one for style.

Both are learned together from stylized images; see lorabench/personalization/inspiration_tree.py. They then stand for
the identifier of the subject and the words of the style in prompts. `lora=inspiration_tree` has the released recipe.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lorabench.base import UserError
from lorabench.config.recipe import token_recipe
from lorabench.config.schemas import LoRASpec
from lorabench.config.settings import setting
from lorabench.data.pairs import Pair
from lorabench.data.stylised import stylised
from lorabench.personalization.schemes.textual_inversion import TokenJob
from lorabench.personalization.training import Environment, Images, Output, Training
from lorabench.personalization.tree import Tree

if TYPE_CHECKING:
    from lorabench.lora.adapter import LoRA
    from lorabench.models.model import DiffusionModel


@dataclass(frozen=True)
class TreeJob(TokenJob):
    """Both tokens of a stylized image.

    Args:
        tree: Settings of the search.
        triggers: Words for content and style in prompts.
    """

    samples: ClassVar[bool] = True
    scorers: ClassVar[tuple[str, ...]] = ("clip", "dino", "csd")

    tree: Tree
    triggers: tuple[str, str]

    @property
    def params(self) -> dict[str, Any]:
        return {**super().params, "tree": asdict(self.tree), "triggers": list(self.triggers)}

    @property
    def steps(self) -> int:
        return self.tree.steps(self.recipe.steps, len(self.concept.images))

    def run(self, model: DiffusionModel, env: Environment) -> dict[str, LoRA]:
        from lorabench.personalization.inspiration_tree import train_tree

        return train_tree(model, self.concept, self.recipe, self.tree, self.triggers, env)


@dataclass(frozen=True, kw_only=True)
class InspirationTree(Training):
    """Two tokens for each subject in each style.

    Args:
        tree_lr: Learning rate of the embeddings.
        siblings: Images sampled with the token of a single image.
        kept: Number of them from which the two tokens are learned.
        candidates: Seeds that are tried.
        trial: Share of the steps after which the best seed is chosen.
        samples: Images sampled per token to choose it.
    """

    images: ClassVar[Images] = "stylised"
    has_factors: ClassVar[bool] = False

    tree_lr: float = setting(above=0)
    siblings: int = setting(least=2)
    kept: int = setting(least=1)
    candidates: int = setting(least=1)
    trial: float = setting(above=0, most=1)
    samples: int = setting(least=2)

    def outputs(self, pair: Pair, recipe: LoRASpec) -> list[Output]:
        if self.kept > self.siblings:
            raise UserError(f"method.kept={self.kept} must be at most method.siblings={self.siblings}")
        if recipe.timesteps != "uniform":
            raise UserError(
                f"lora.timesteps={recipe.timesteps} is not a setting of method/training=inspiration_tree, which has "
                "its own law; use lora.timesteps=uniform"
            )
        tree = Tree(self.siblings, self.kept, self.candidates, self.trial, self.samples)
        both, (content, style) = stylised(pair), pair.concepts
        spec = token_recipe(recipe, self.tree_lr)
        job = TreeJob(both, spec, f"{pair.name} as two tokens", tree, (content.token, style.token))
        return [Output(job, "content", "content", content), Output(job, "style", "style", style)]
