"""The training of CRAFT-LoRA (arXiv 2602.18936): adapters in separate layers, on a rank-limited backbone.

    W_init = W - Q Q^T W,    Q = QR([Q_c | Q_s])          once per model, shared by all pairs (backbone.py)
    content adapter on the layers I_c, style adapter on I_s, both trained on W_init;    I_c and I_s are disjoint

Each adapter is trained by DreamBooth on one image of its concept. A layer outside its set has no factors, so it gets no
gradient. (The released script trains all layers and drops some when it loads the LoRA.)

docs/craft.md has what the paper does not define, and what was chosen.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from lorabench.base import UserError
from lorabench.config.dataset_schemas import DatasetSpec, MicroworldSpec, StylisedSpec
from lorabench.config.schemas import LoRASpec
from lorabench.config.settings import setting
from lorabench.data.concepts import ROLES, Concept
from lorabench.data.pairs import Pair
from lorabench.models.layer_sets import LayerSets, read_layer_sets
from lorabench.personalization.backbone import BackboneJob, BackboneSpec, backbone_job
from lorabench.personalization.frequency import RenderSpec
from lorabench.personalization.schemes.dreambooth import DreamBoothJob
from lorabench.personalization.training import Environment, Job, Output, Training

if TYPE_CHECKING:
    from lorabench.lora.adapter import LoRA
    from lorabench.models.layer_map import LayerMap
    from lorabench.models.model import DiffusionModel

PAIRS = ("truth", "reference", "rendered")


@dataclass(frozen=True)
class CraftJob(DreamBoothJob):
    """DreamBooth in a set of layers, whose modules are `recipe.blocks`.

    Args:
        base: Job of the backbone; None for the plain model.
    """

    base: BackboneJob | None = None

    @property
    def backbone(self) -> Job | None:
        return self.base

    def ranks(self, layers: LayerMap) -> dict[str, int]:
        return dict.fromkeys(layers.trained(self.present(layers), self.recipe.targets), self.recipe.rank)

    def run(self, model: DiffusionModel, env: Environment) -> dict[str, LoRA]:
        from lorabench.personalization.dreambooth import personalize

        recipe = replace(self.recipe, blocks=self.present(model.layers))
        return {"lora": personalize(model, self.concept, recipe, env)}

    def present(self, layers: LayerMap) -> list[str]:
        """Return the modules of the set that have layers of `recipe.targets` in this model; prints the others.

        Raises:
            UserError: If none has.
        """
        found = [each for each in self.recipe.blocks if layers.has(each, self.recipe.targets)]
        missing = tuple(each for each in self.recipe.blocks if each not in found)
        role = self.concept.role
        if not found:
            raise UserError(
                f"the {role} set of method.layer_sets ({', '.join(missing)}) has no layer of lora.targets="
                f"{self.recipe.targets} in this model; use method.layer_sets=<a yaml of task=layer_probe>"
            )
        if missing:
            tell_missing(role, missing, self.recipe.targets)
        return found


@cache
def tell_missing(role: str, modules: tuple[str, ...], targets: str) -> None:
    """Print once that modules are left out."""
    names = ", ".join(modules)
    print(f"the {role} modules {names} have no layer of lora.targets={targets} here; left out", file=sys.stderr)


@dataclass(frozen=True, kw_only=True)
class Craft(Training):
    """Adapters in separate layers.

    Args:
        layer_sets: Modules or groups by role: a preset of conf/layer_sets, a file, or {content: [...], style: [...]}.
        one_image: Train each adapter on the first image only.
        rank_limited: Train on a rank-limited backbone instead of the plain base weights.
        pairs: Images that the backbone learns from: "truth", "reference" or "rendered".
        references: Manifest of the images behind "reference" and "rendered"; None uses the microworld's.
        backbone: Ranks and training of the backbone.
        render: How pairs=rendered are sampled.
    """

    layer_sets: Any
    one_image: bool
    rank_limited: bool
    pairs: str = setting(options=PAIRS)
    references: str | None
    backbone: BackboneSpec
    render: RenderSpec

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.sets  # a mistake in them ends the run here

    @property
    def sets(self) -> LayerSets:
        return read_layer_sets("method.layer_sets", self.layer_sets, "layer_sets")

    def check(self, layers: LayerMap, recipe: LoRASpec) -> None:
        sets = self.sets
        for layer in layers.trained(targets=recipe.targets).values():
            if all(any(map(layer.inside, sets[role])) for role in ROLES):
                raise UserError(f"method.layer_sets gives {layer.name} to both roles; take it out of one list")

    def check_dataset(self, dataset: DatasetSpec) -> None:
        in_world = isinstance(dataset, MicroworldSpec | StylisedSpec)
        if not self.rank_limited or in_world or (self.references is not None and self.pairs != "truth"):
            return
        raise UserError(
            f"method.pairs={self.pairs} has no images outside the microworld without method.references; use "
            "method.pairs=rendered method.references=<manifest of content and style images>"
        )

    def shortened(self, steps: int) -> Craft:
        backbone = replace(self.backbone, steps=min(steps, self.backbone.steps), batch=1, contents=1, styles=1)
        return replace(self, backbone=backbone, render=replace(self.render, steps=min(steps, self.render.steps)))

    def outputs(self, pair: Pair, recipe: LoRASpec) -> list[Output]:
        base = None
        if self.rank_limited:
            base = backbone_job(self.backbone, self.render, self.pairs, self.references, recipe)
        return [self.output(each, recipe, base) for each in pair.concepts]

    def output(self, concept: Concept, recipe: LoRASpec, base: BackboneJob | None) -> Output:
        shown = replace(concept, images=concept.images[:1]) if self.one_image else concept
        modules: Sequence[str] = self.sets[concept.role]
        name = f"{concept.name} in {concept.role} layers{'' if base is None else ' of a rank-limited backbone'}"
        return Output(CraftJob(shown, replace(recipe, blocks=list(modules)), name, base), "lora", concept.role, shown)
