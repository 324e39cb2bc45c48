"""The rank-limited backbone of CRAFT-LoRA (arXiv 2602.18936, section 3.3 and appendix A): a job of no pair.

    r_l = r_max - (l - 1) / (L - 1) (r_max - r_min),   l = 1..L from the input to the output of the denoiser
    min over B_c, B_s   L(B_c; content images) + L(B_s; style images)
    L = E || eps - eps_theta(x_t, t, p) ||^2 + perceptual L_perc + penalty sum_l ||B_l||_F^2
    Q_l = QR([Q_c | Q_s]),    W_l' = W_l - Q_l Q_l^T W_l

The result is the adapter `backbone` (`up` = -Q, `down` = Q^T W), from which the weights are rebuilt exactly; the bases
of both factors are stored next to it. The layers of `lora.targets` are changed. The paper also changes convolutions.

A layer has at most `most` of its outputs removed per basis, so that one setting serves models of all widths.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from lorabench.base import UserError, seed_of
from lorabench.config.schemas import LoRASpec
from lorabench.config.settings import setting
from lorabench.data.concepts import Concept, Reference
from lorabench.personalization.contrastive import contrastive
from lorabench.personalization.frequency import RenderJob, RenderSpec, rendered
from lorabench.personalization.perceptual import FILE, weights_file
from lorabench.personalization.training import BACKBONE, Environment, Job

if TYPE_CHECKING:
    from lorabench.lora.adapter import Adapter
    from lorabench.models.layer_map import LayerMap
    from lorabench.models.model import DiffusionModel

INITS = ("random", "bottom_svd")


@dataclass(kw_only=True)
class BackboneSpec:
    """How the bases are learned.

    Args:
        contents: Contents of the contrastive pairs.
        styles: Styles; each content meets each style.
        r_max: Rank of each basis in the first layer.
        r_min: Rank in the last layer.
        most: Largest rank of a basis as a share of a layer's outputs; None does not limit it.
        basis_init: Start of B, "random" or "bottom_svd".
        steps: Optimizer steps.
        batch: Content images and style images per step, as many of each.
        lr: Peak of the learning rate, which falls to 0 by a cosine.
        warmup: Steps of the linear warm-up.
        perceptual: Weight of the perceptual term.
        penalty: Weight of the squared length of B.
        cross: Weight of the overlap of both subspaces.
    """

    contents: int = setting(least=1)
    styles: int = setting(least=1)
    r_max: int = setting(least=1)
    r_min: int = setting(least=1)
    most: float | None = setting(above=0, most=0.5)
    basis_init: str = setting(options=INITS)
    steps: int = setting(least=1)
    batch: int = setting(least=1)
    lr: float = setting(above=0)
    warmup: int = setting(least=0)
    perceptual: float = setting(least=0)
    penalty: float = setting(least=0)
    cross: float = setting(least=0)

    def ranks(self, layers: LayerMap, targets: str = "attention") -> dict[str, int]:
        """Return the rank of each basis by layer, falling along the forward pass.

        Args:
            layers: Layers of the model.
            targets: Set of layers that are changed, see `LayerMap.trained`.

        Raises:
            UserError: If the ranks rise.
        """
        if self.r_min > self.r_max:
            raise UserError(
                f"method.backbone.r_min={self.r_min} must be at most method.backbone.r_max={self.r_max}; use "
                f"method.backbone.r_min={self.r_max}"
            )
        changed = layers.trained(targets=targets)
        found, last = {}, max(len(changed) - 1, 1)
        for place, (name, layer) in enumerate(changed.items()):
            rank = round(self.r_max - place / last * (self.r_max - self.r_min))
            limit = layer.out_features - 1 if self.most is None else int(self.most * layer.out_features)
            found[name] = max(1, min(rank, limit))
        return found


@dataclass(frozen=True)
class BackboneJob(Job):
    """The training of both bases.

    Args:
        spec: Ranks and loss.
        source: Job that renders the images; None trains on those of `concept`, content images as `images` and style
            images as `styled`.
    """

    version = 2
    stage = "backbone"

    spec: BackboneSpec | None = None
    source: RenderJob | None = None

    @property
    def params(self) -> dict[str, Any]:
        if self.own.perceptual and not self.perceptual:
            tell_missing()
        spec = asdict(self.own) | {"perceptual": self.perceptual}
        return {**super().params, "backbone": spec, "rendered": self.source is not None}

    @property
    def own(self) -> BackboneSpec:
        assert self.spec is not None
        return self.spec

    @property
    def needs(self) -> tuple[Job, ...]:
        return (self.source,) if self.source else ()

    @property
    def perceptual(self) -> float:
        """Return the weight of the perceptual term, 0 without its network."""
        return self.own.perceptual if weights_file() else 0.0

    def ranks(self, layers: LayerMap) -> dict[str, int]:
        return self.own.ranks(layers, self.recipe.targets)

    def images(self, env: Environment) -> tuple[tuple[Reference, ...], tuple[Reference, ...]]:
        """Return content images and style images."""
        if self.source is None:
            return self.concept.images, self.concept.styled
        [folder] = env.needed
        return rendered(folder)

    def run(self, model: DiffusionModel, env: Environment) -> dict[str, Adapter]:
        from lorabench.lora.adapter import Adapter
        from lorabench.lora.projection import joined_reduction
        from lorabench.personalization.perceptual import Perceptual
        from lorabench.personalization.rank_reduction import Terms, learn_bases

        term, file = None, weights_file()
        if self.perceptual and file is not None:
            term = Perceptual.load(file, self.perceptual, model.device)
        terms = Terms(self.own.penalty, self.own.cross, term)
        seed = seed_of("backbone", self.concept.identity(), env.seed)
        content, style = learn_bases(
            model, self.images(env), self.ranks(model.layers), self.own.basis_init, self.recipe, seed, env, terms
        )
        if env.folder is not None:
            for role, basis in (("content", content), ("style", style)):
                basis.save(env.folder / f"{role}.safetensors", format="store")
        return {BACKBONE: Adapter({name: joined_reduction([content[name], style[name]]) for name in content})}

    def learned(self, lora: Adapter) -> int:
        return lora.parameters("up")


def backbone_job(
    spec: BackboneSpec, render: RenderSpec, pairs: str, manifest: str | None, like: LoRASpec | None = None
) -> BackboneJob:
    """Return the job of a backbone.

    Args:
        pairs: "truth", "reference" or "rendered".
        manifest: Of the reference images; None uses the microworld's.
        like: Recipe of the adapters, whose layers, noise levels and loss the backbone has; None uses the defaults.
    """
    recipe = LoRASpec(
        rank=spec.r_max, alpha=spec.r_max, blocks=[], text_encoders=False, text_lr=spec.lr, steps=spec.steps,
        batch=spec.batch, accumulate=1, optimizer="adamw", lr=spec.lr, betas=(0.9, 0.999), weight_decay=0.0,
        schedule="cosine", cycles=1, warmup=spec.warmup, max_grad_norm=1.0, min_snr=None, prior_weight=0.0,
        prior_images=1, flips=False, crops=0, sample_every=0,
    )  # fmt: skip
    if like is not None:
        recipe = replace(recipe, targets=like.targets, timesteps=like.timesteps, loss=like.loss)
    concept: Concept = contrastive(spec.contents, spec.styles, pairs == "truth", manifest)
    source = RenderJob(concept, recipe, "contrastive pairs", render) if pairs == "rendered" else None
    return BackboneJob(concept, recipe, f"backbone on {pairs} pairs", spec, source)


@cache
def tell_missing() -> None:
    """Print once that the perceptual term is off."""
    print(f"the backbone is trained without its perceptual term: {FILE} is not in torch's cache", file=sys.stderr)
