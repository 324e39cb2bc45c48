"""The trainings of B-LoRA (Frenkel et al., ECCV 2024, arXiv 2403.14572): adapters in two blocks only.

Each adapter is trained in the content block and the style block together, on one image with the caption "a [v]": the
identifier without a class word. The blocks separate content from style, see lorabench/merging/methods/blora.py.
`ablation=all_images` trains on the images and captions of other methods; `lora=blora` has the published recipe.

If content and style are known from the same images (`dataset=microworld_stylised`), one training gives both, as in the
released code: its content block is the content, and its style block is the style.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lorabench.config.schemas import LoRASpec
from lorabench.data.concepts import ROLES, Concept
from lorabench.data.pairs import Pair
from lorabench.data.stylised import is_stylised
from lorabench.models.layer import modules
from lorabench.models.layer_map import LayerMap
from lorabench.models.layer_sets import role_modules
from lorabench.personalization.schemes.dreambooth import dreambooth
from lorabench.personalization.training import Output, Training


@dataclass(frozen=True, kw_only=True)
class BLoRATraining(Training):
    """DreamBooth in two blocks.

    Args:
        content_block: Module or group of the content block, W4 in the paper, several, or a set of conf/layer_sets.
        style_block: Module or group of the style block, W5 in the paper, several, or a set of conf/layer_sets.
        one_image: Train on the first image only, without a class word in its caption.
    """

    content_block: Any
    style_block: Any
    one_image: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        for role in ROLES:
            key = f"{role}_block"
            object.__setattr__(self, key, role_modules(f"method.{key}", getattr(self, key), role))

    def outputs(self, pair: Pair, recipe: LoRASpec) -> list[Output]:
        spec = replace(recipe, blocks=[*modules(self.content_block), *modules(self.style_block)])
        if self.one_image and is_stylised(pair):
            content, style = pair.concepts
            both = dreambooth(replace(self.shown(content), name=pair.name), spec, " in two blocks")
            of_content, of_style = (replace(each, images=both.shown.images) for each in (content, style))
            return [replace(both, shown=of_content), replace(both, role="style", shown=of_style)]
        return [dreambooth(self.shown(concept), spec, " in two blocks") for concept in pair.concepts]

    def check(self, layers: LayerMap, recipe: LoRASpec) -> None:
        for role in ROLES:
            for module in modules(getattr(self, f"{role}_block")):
                layers.check_block(module, f"method.{role}_block", recipe.targets)

    def shown(self, concept: Concept) -> Concept:
        """Return the concept with the images that the adapter is trained on."""
        if not self.one_image:
            return concept
        return replace(concept, images=(replace(concept.images[0], prompt=f"a {concept.token}"),))
