"""Stage 1: one LoRA for one concept, by DreamBooth-LoRA.

Ruiz et al., DreamBooth, CVPR 2023, with the weights of Hu et al., LoRA, ICLR 2022, on the attention projections of the
UNet; no prior preservation, text encoders frozen, as ZipLoRA (arXiv 2311.13600, section 4) trains the LoRAs it merges:

    minimise  E_{image, eps, t} || UNet_{W + alpha/rank U D}(x_t, t, prompt) - target(x_0, eps, t) ||^2

The target is the noise or the velocity, whichever the model predicts.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from lorabench.adapters import Adapters, attach
from lorabench.config import LoRASpec, TrainerSpec
from lorabench.data.pairs import Concept
from lorabench.lora import Factors, LoRA
from lorabench.models.sdxl import SDXL, pixels
from lorabench.models.sites import attention_sites
from lorabench.seeds import seed_of
from lorabench.stages.fitting import Progress, fit


class DreamBoothLoRA(pl.LightningModule):
    """Trains the one adapter on the UNet; latents and text embeddings are computed once."""

    def __init__(self, model: SDXL, adapters: Adapters, concept: Concept, spec: LoRASpec, seed: int):
        super().__init__()
        self.model, self.spec, self.seed = model, spec, seed
        self.factors = nn.ParameterList(
            factor for layer in adapters.layers.values() for factor in (layer.down, layer.up)
        )
        self.factors.requires_grad_(True)
        self.scale = spec.alpha / spec.rank
        adapters.rows(torch.tensor([[self.scale]]))
        images = [reference.image(model.resolution) for reference in concept.images]
        self.latents = model.encode_images(pixels(images))
        self.prompts = model.encode_prompts([reference.prompt for reference in concept.images])

    def training_step(self, step: int) -> Tensor:
        draw = torch.Generator().manual_seed(self.step_seed(step))
        picks = torch.randint(len(self.latents), (self.spec.batch,), generator=draw)
        t = torch.randint(len(self.model.alphas_bar), (self.spec.batch,), generator=draw).to(self.model.device)
        noise = torch.randn(self.spec.batch, *self.latents.shape[1:], generator=draw).to(self.model.device)
        latents, prompts = self.latents[picks], self.prompts.take(picks)
        prediction = self.model.predict(self.model.add_noise(latents, noise, t), t, prompts)
        loss = mse_loss(prediction, self.model.target(latents, noise, t))
        self.log("loss", loss, batch_size=1)
        return loss

    def step_seed(self, step: int) -> int:
        return seed_of(self.seed, step)

    def configure_optimizers(self) -> Any:
        spec = self.spec
        slow, fast = spec.betas
        optimiser = torch.optim.AdamW(self.factors, lr=spec.lr, betas=(slow, fast), weight_decay=spec.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1, (step + 1) / (spec.warmup + 1)))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def personalise(
    model: SDXL,
    concept: Concept,
    spec: LoRASpec,
    seed: int,
    trainer: TrainerSpec,
    progress: Progress | None = None,
    logger: Logger | None = None,
) -> LoRA:
    """Train a LoRA on the images of a concept; alpha / rank is folded into the result.

    Every draw is seeded by the concept's images and words, `seed` and the step.
    progress: called after every step with the number of optimiser steps done so far, of spec.steps.
    """
    item = seed_of("personalise", concept.identity(), seed)
    with attach(model.unet, [initial(model.unet, spec.rank, item)], dtype=torch.float32) as adapters:
        module = DreamBoothLoRA(model, adapters, concept, spec, item)
        fit(
            module,
            spec.steps,
            model.device,
            trainer.precision,
            progress,
            logger,
            gradient_clip_val=spec.max_grad_norm,
        )
        [trained] = adapters.loras()
    return LoRA({site: Factors(each.down, each.up * module.scale) for site, each in trained.items()})


def initial(unet: nn.Module, rank: int, seed: int) -> LoRA:
    """Where training starts: `down` normal with standard deviation 1 / rank, `up` zero (peft's "gaussian")."""
    factors = {}
    for site, layer in attention_sites(unet).items():
        draw = torch.Generator().manual_seed(seed_of(seed, site))
        down = torch.randn(rank, layer.in_features, generator=draw) / rank
        factors[site] = Factors(down, torch.zeros(layer.out_features, rank))
    return LoRA(factors)
