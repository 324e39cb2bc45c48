"""UnZipLoRA (Liu et al., ICCV 2025, arXiv 2412.04465): a content and a style LoRA from one image that shows both.

    K or V = W x + m_c v_c . dW_c x_c + m_s v_s . dW_s x_s          (cross-attention; elsewhere x_c = x_s = x)
    minimize  E || e(x_t, t, x, x_c, x_s) - eps ||^2 + lambda mean |m_c v_c . m_s v_s|

    x, x_c, x_s     states of "a sks mug in ink style", "a sks mug", "a mug in ink style"    prompt separation
    m_c, m_s        0 or 1 by output (column), chosen again on schedule                      column separation
    v_c, v_s        merge vectors [out] in [0, 1], learned from 1
    m_k = 1         in the blocks dedicated to k                                             block separation

The adapters learn together, in one forward pass per step, see lorabench/personalization/unzip.py. Column masks are
folded into the adapters. Merge vectors are masks of joint use: an adapter by itself is used without them. The exact
joint model is `method/sampling=three_prompts`; one file of both is the sum, whose adapters read the full prompt.
docs/unziplora.md lists the differences between the paper and the released code, each of which is a setting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lorabench.base import UserError
from lorabench.config.recipe import check_recipe
from lorabench.config.schemas import LoRASpec
from lorabench.config.settings import setting
from lorabench.data.pairs import Pair
from lorabench.data.stylised import ThreePrompts, stylised, three_prompts
from lorabench.models.layer_map import LayerMap
from lorabench.personalization.training import Environment, Images, Job, Output, Training

if TYPE_CHECKING:
    from lorabench.lora.adapter import LoRA
    from lorabench.models.model import DiffusionModel


@dataclass(frozen=True, kw_only=True)
class UnZipLoRA(Training):
    """Two adapters from the images of one subject in one style.

    Args:
        prompt_separation: Each adapter reads its own prompt in the keys and values of cross-attention.
        columns: Share of the columns of a layer that are chosen at a time; 1 is without column separation.
        recalibrations: Number of times that columns are chosen in a training.
        chosen: "fresh" replaces the columns chosen before, "union" adds to them.
        score: Rating of a column, "mean" or "count" (share of products above `threshold`).
        threshold: Bound of the score "count".
        gradient_scale: Factor on the gradients that the scores see.
        ties: "stable" chooses exactly `columns`, "strict" those above the lowest of them.
        disjoint: In shared blocks the style chooses among the columns that the content has not chosen.
        dedicated: Blocks in which one adapter changes all columns: "names", "depth" (coarse ones for the content, fine
            ones for the style) or "none".
        content_blocks: Modules dedicated to the content.
        style_blocks: Modules dedicated to the style.
        merge_lr: Learning rate of the merge vectors; 0 leaves them at 1.
        merge_gradient: Columns whose merge vectors learn: "own" or "both" (chosen by both adapters).
        lambda_orthogonality: Weight of the overlap of the columns.
        orthogonality: "mean" over layers and columns, or "sum".
        initial_up: Standard deviation of U at the start, times rank; that of D is 1 / rank.
    """

    images: ClassVar[Images] = "stylised"
    version: ClassVar[int] = 1

    prompt_separation: bool
    columns: float = setting(above=0, most=1)
    recalibrations: int = setting(least=1)
    chosen: str = setting(options=("fresh", "union"))
    score: str = setting(options=("mean", "count"))
    threshold: float = setting(least=0)
    gradient_scale: float = setting(above=0)
    ties: str = setting(options=("stable", "strict"))
    disjoint: bool
    dedicated: str = setting(options=("names", "depth", "none"))
    content_blocks: list[str]
    style_blocks: list[str]
    merge_lr: float = setting(least=0)
    merge_gradient: str = setting(options=("own", "both"))
    lambda_orthogonality: float = setting(least=0)
    orthogonality: str = setting(options=("mean", "sum"))
    initial_up: float = setting(above=0)

    def outputs(self, pair: Pair, recipe: LoRASpec) -> list[Output]:
        check_unzip(recipe)
        concept = stylised(pair)
        job = UnZipJob(concept, recipe, concept.name, three_prompts(pair), self)
        return [Output(job, each.role, each.role, each) for each in pair.concepts]

    def check(self, layers: LayerMap, recipe: LoRASpec) -> None:
        self.all_columns(layers, recipe)

    def all_columns(self, layers: LayerMap, recipe: LoRASpec) -> dict[str, tuple[bool, bool]]:
        """Return whether content and style change all columns of a layer.

        Raises:
            UserError: If a dedicated block has no layer to adapt.
        """
        from lorabench.personalization.columns import dedicated

        trained = layers.trained(recipe.blocks, recipe.targets)
        if self.columns == 1:
            return dict.fromkeys(trained, (True, True))
        return dedicated(trained, self.dedicated, self.content_blocks, self.style_blocks, layers.modules)


@dataclass(frozen=True)
class UnZipJob(Job):
    """Both adapters of one subject in one style.

    Args:
        prompts: Full, content and style prompt of all images.
        scheme: The settings.
    """

    prompts: ThreePrompts
    scheme: UnZipLoRA

    @property
    def params(self) -> dict[str, Any]:
        from lorabench.config.components import values_of

        scheme = {"version": self.scheme.version, **values_of(self.scheme)}
        return {**super().params, "prompts": list(self.prompts), "scheme": scheme}

    def run(self, model: DiffusionModel, env: Environment) -> dict[str, LoRA]:
        from lorabench.personalization.unzip import unzip

        content, style = unzip(model, self, env)
        return {"content": content, "style": style}

    def learned(self, lora: LoRA) -> int:
        vectors = (each.numel() for mask in lora.masks.values() for each in mask.named().values())
        return lora.parameters() + sum(vectors)


def check_unzip(spec: LoRASpec) -> None:
    """Check that a recipe is one for two adapters that learn together.

    Raises:
        UserError: If it is not.
    """
    check_recipe(spec)
    for name, wanted in (("text_encoders", spec.text_encoders), ("prior_weight", spec.prior_weight)):
        if wanted:
            raise UserError(
                f"lora.{name}={wanted} is not supported by method/training=unziplora; use lora.{name}={0 * wanted}"
            )
    if spec.steps < 3:
        raise UserError(
            f"lora.steps={spec.steps} must be at least 3, since columns are chosen after 2; use lora.steps=600"
        )
    if spec.optimizer == "prodigy":
        raise UserError(
            "lora.optimizer=prodigy has one step size for factors and merge vectors; use lora.optimizer=adamw"
        )
