"""Stage 1: one LoRA for one concept, by DreamBooth-LoRA.

Ruiz et al., DreamBooth, CVPR 2023, with the weights of Hu et al., LoRA, ICLR 2022, on the attention projections of the
UNet, as ZipLoRA (arXiv 2311.13600, section 4) trains the LoRAs it merges:

    minimise  E_{image, eps, t} w(t) || UNet_{W + alpha/rank U D}(x_t, t, prompt) - target(x_0, eps, t) ||^2

The target is the noise or the velocity, whichever the model predicts. w is 1 or that of Min-SNR (Hang et al., ICCV
2023). Prior preservation adds the same term, with w = 1, on images that the base model draws of the concept's class.

Steps count updates. A step draws its images with replacement, each draw seeded by its number, so there are no epochs
and nothing for the option `repeats` of diffusers' scripts to lengthen; an image listed twice is drawn twice as often.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from lorabench.base import seed_of
from lorabench.config.recipe import check_recipe
from lorabench.config.schemas import LoRASpec
from lorabench.data.pairs import Concept, Reference
from lorabench.engine.checkpoint import Checkpoint
from lorabench.engine.lightning import fit
from lorabench.lora.adapter import Factors, LoRA
from lorabench.lora.layer import Adapters
from lorabench.models.conditioning import Conditioning
from lorabench.models.model import DiffusionModel
from lorabench.personalization.initial import core, initial, initial_text
from lorabench.personalization.optimizers import optimiser, schedule
from lorabench.personalization.samples import Look, Samples
from lorabench.personalization.training import Environment
from lorabench.personalization.views import Batch, views

FACTORS = ("down", "up")


class DreamBoothLoRA(pl.LightningModule):
    """Trains the one adapter on the denoiser, and the one on the text encoders where there is one.

    Latents are computed once, and so are text embeddings unless the text encoders learn.
    prior: class images, for prior preservation.  text: adapters on the text encoders.  learned: of the denoiser's
    factors.
    """

    def __init__(
        self,
        model: DiffusionModel,
        adapters: Adapters,
        concept: Concept,
        spec: LoRASpec,
        seed: int,
        prior: Sequence[Reference] = (),
        text: Adapters | None = None,
        learned: Sequence[str] = FACTORS,
    ):
        super().__init__()
        self.model, self.spec, self.seed, self.text = model, spec, seed, text
        self.scale = spec.alpha / spec.rank
        self.groups = [{"params": trainable(adapters, self.scale, learned), "lr": spec.lr}]
        if text is not None:
            self.groups.append({"params": trainable(text, self.scale), "lr": spec.text_lr})
        self.factors = nn.ParameterList(factor for group in self.groups for factor in group["params"])
        self.images = views(model, concept.images, spec.flips, spec.crops, seed)
        self.latents = self.images.latents
        self.prior = views(model, prior, spec.flips, min(spec.crops, 1), seed) if prior else None
        if text is None:  # all of them now, so that the text encoders are not needed again
            model.encode_prompts(self.images.prompts + (self.prior.prompts if self.prior else []))
        self.losses: list[Tensor] = []

    def training_step(self, forward: int) -> Tensor:
        draw = torch.Generator().manual_seed(self.step_seed(forward))
        batch = self.images.draw(self.model, self.spec.batch, draw)
        if self.prior is not None:
            batch = batch.join(self.prior.draw(self.model, self.spec.batch, draw))
        loss = self.loss(batch)
        self.losses.append(loss.detach())
        if len(self.losses) == self.spec.accumulate:
            self.log("loss", torch.stack(self.losses).mean(), batch_size=1)
            self.losses.clear()
        return loss

    def loss(self, batch: Batch) -> Tensor:
        """Of a batch whose rows are as many images of the concept, then those of its class if there are any."""
        model, own = self.model, self.spec.batch
        prediction, target = denoised(model, batch, self.encode(batch.prompts))
        loss = weighted_mse(prediction[:own], target[:own], model.process.loss_weight(batch.t[:own], self.spec))
        if self.prior is not None:
            loss = loss + self.spec.prior_weight * mse_loss(prediction[own:], target[own:])
        return loss

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        return self.model.encode_prompts(prompts, grad=self.text is not None)

    def step_seed(self, forward: int) -> int:
        return seed_of(self.seed, forward)

    def configure_optimizers(self) -> Any:
        found = optimiser(self.spec, self.groups)
        return {"optimizer": found, "lr_scheduler": {"scheduler": schedule(found, self.spec), "interval": "step"}}


def personalize(
    model: DiffusionModel, concept: Concept, spec: LoRASpec, env: Environment, in_core: bool = False
) -> LoRA:
    """Train a LoRA on the images of a concept; alpha / rank is folded into the result.

    Every random draw is seeded by the concept's images and words, the seed and the step.

    Args:
        env: Its progress counts optimizer steps, of `spec.steps`.
        in_core: `up` is a basis of the layer's weight and only `down` learns, see `initial.core`.

    Raises:
        UserError: If the recipe does not fit the model or this machine.
    """
    check_recipe(spec)
    item = seed_of("personalise", concept.identity(), env.seed)
    with ExitStack() as stack:
        layers = model.layers.trained(spec.blocks)
        start = core(model.denoiser, layers, spec.rank) if in_core else initial(layers, spec.rank, item)
        adapters = stack.enter_context(model.attach([start], dtype=torch.float32))
        text = None
        if spec.text_encoders:
            stack.enter_context(model.present(*model.text.values()))
            start = initial_text(model.layers.trained_text(), spec.rank, item)
            text = stack.enter_context(model.attach_text([start], dtype=torch.float32))
        learned = ("down",) if in_core else FACTORS
        module = DreamBoothLoRA(model, adapters, concept, spec, item, env.class_images, text, learned)
        checkpoint = Checkpoint(env.scratch, env.trainer.checkpoint_every, env.curves) if env.scratch else None
        callbacks: list[pl.Callback] = [checkpoint] if checkpoint else []
        if env.samples is not None and env.generate is not None and spec.sample_every:
            prompt, noise = concept.images[0].prompt, seed_of("sample", item)
            look = Look(env.samples, env.generate)
            callbacks.append(Samples(look, spec.sample_every, model, prompt, noise, spec.text_encoders))
        fit(
            module,
            spec.steps,
            model.device,
            env.trainer.precision,
            env.progress,
            env.curves,
            callbacks,
            checkpoint.done if checkpoint else 0,
            spec.accumulate,
            gradient_clip_val=spec.max_grad_norm,
        )
        [factors], [text_factors] = adapters.loras(), text.loras() if text is not None else [{}]
    return LoRA(folded(factors, module.scale), folded(text_factors, module.scale))


def folded(factors: Mapping[str, Factors], scale: float) -> dict[str, Factors]:
    """Return trained factors with alpha / rank in `up`."""
    return {layer: each.times(scale) for layer, each in factors.items()}


def trainable(adapters: Adapters, scale: float, learned: Sequence[str] = FACTORS) -> list[Tensor]:
    """Those factors of an adapter, which now learn, at strength `scale` in every row."""
    adapters.rows(torch.tensor([[scale]]))
    return [getattr(layer, name).requires_grad_(True) for layer in adapters.layers.values() for name in learned]


def denoised(model: DiffusionModel, batch: Batch, words: Conditioning) -> tuple[Tensor, Tensor]:
    """What the model predicts of a noised batch, and what it should."""
    noised = model.process.add_noise(batch.latents, batch.noise, batch.t)
    prediction = model.predict(noised, batch.t, model.with_crops(words, batch.crops))
    return prediction, model.process.target(batch.latents, batch.noise, batch.t)


def weighted_mse(prediction: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """The mean squared error over rows [n, ...], each times its weight [n]."""
    if weight is None:
        return mse_loss(prediction, target)
    errors = (prediction - target).square().mean(dim=(1, 2, 3))
    return (errors * weight).mean()
