"""Training of PairCustomization (Jones et al., arXiv 2405.01536): content and style LoRAs from one styled image.

    content   min_{U_c}  E || e_{c}(x_t, t, p_c) - eps ||^2              on the image before styling
    style     min_{U_s}  E || e_{c+s}(x_t', t, p_cs) - eps ||^2          on the image after styling, with U_c fixed

The content adapter learns the image, and the style adapter learns only the change by styling. D_c and D_s are fixed
rows of one orthonormal basis (`initial.disjoint`), so that the two adapters read different features. In a first part of
the training, a step updates only the content adapter. Later, a step updates both (`phases`), with the same noise and
timestep.

Batches are drawn from the views of one image. The recipe of the released code is `lora=pair`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lorabench.base import seed_of
from lorabench.config.schemas import LoRASpec
from lorabench.data.concepts import ROLES, Concept, Role
from lorabench.lora.adapter import LoRA
from lorabench.lora.layer import Adapters
from lorabench.models.model import DiffusionModel
from lorabench.personalization.dreambooth import denoised, folded, weighted_mse
from lorabench.personalization.initial import disjoint
from lorabench.personalization.optimizers import optimiser, schedule
from lorabench.personalization.phases import check_aligned, phase, updates
from lorabench.personalization.resumable import fit_resumable
from lorabench.personalization.training import Environment
from lorabench.personalization.views import views

BASIS_SEED = 0  # one basis for all trainings, as in the released code: style LoRAs of several images share it


class AlignedLoRAs(pl.LightningModule):
    """Trains both adapters of the denoiser; a "batch" is the number of a forward pass, `accumulate` make an update."""

    def __init__(self, model: DiffusionModel, adapters: Adapters, concept: Concept, spec: LoRASpec, seed: int):
        super().__init__()
        self.model, self.adapters, self.spec, self.seed = model, adapters, spec, seed
        shots: dict[Role, Any] = {"content": concept.images, "style": concept.styled}
        self.views = {role: views(model, shots[role], spec.flips, spec.crops, seed, spec.timesteps) for role in ROLES}
        self.layers = list(adapters.layers.values())
        # The adapters' own columns of the stacked factors, as parameters of their own: Adam does not move a parameter
        # without a gradient, but moves one with a gradient of zero by its momentum.
        self.ups = {
            role: [nn.Parameter(layer.factors()[k].up.detach()) for layer in self.layers]
            for k, role in enumerate(ROLES)
        }
        self.factors = nn.ParameterList([*self.ups["content"], *self.ups["style"]])
        for layer in self.layers:
            layer.up.requires_grad_(True)

    def training_step(self, forward: int) -> Tensor:
        update, part = divmod(forward, self.spec.accumulate)
        self.role, step = phase(update, self.spec.steps)
        loss = self.loss(self.role, step, part)
        self.log(self.role, loss, batch_size=1)
        return loss

    def loss(self, role: Role, step: int, part: int = 0) -> Tensor:
        """Return the content's loss, with only its adapter, or the style's, with both."""
        draw = torch.Generator().manual_seed(seed_of(self.seed, step, part))
        batch = self.views[role].draw(self.model, self.spec.batch, draw)
        scale = self.spec.alpha / self.spec.rank
        self.adapters.rows(torch.tensor([[scale, scale * (role == "style")]]))
        prediction, target = denoised(self.model, batch, self.model.encode_prompts(batch.prompts))
        return weighted_mse(prediction, target, self.model.process.loss_weight(batch.t, self.spec))

    def on_after_backward(self) -> None:
        """Give the gradient only to the adapter of this update, before gradients are unscaled or clipped."""
        k = ROLES.index(self.role)
        for layer, up in zip(self.layers, self.ups[self.role], strict=True):
            assert layer.up.grad is not None
            own = layer.up.grad.split(layer.ranks, dim=1)[k]
            up.grad = own if up.grad is None else up.grad + own
            layer.up.grad = None

    def configure_optimizers(self) -> Any:
        every = replace(self.spec, steps=updates(self.spec.steps))
        found = optimiser(self.spec, [{"params": list(self.factors), "lr": self.spec.lr}])
        return {"optimizer": found, "lr_scheduler": {"scheduler": schedule(found, every), "interval": "step"}}


def train_aligned(model: DiffusionModel, concept: Concept, spec: LoRASpec, env: Environment) -> dict[Role, LoRA]:
    """Train both LoRAs of a subject; its `styled` images are its `images` after styling. alpha / rank is in `up`.

    The content's LoRA does not depend on the style.

    Args:
        model: The model.
        concept: The subject.
        spec: Settings of the training.
        env: Seed, trainer and progress; the progress counts `updates(spec.steps)`.

    Raises:
        UserError: If the recipe does not fit the model or this training.
    """
    check_aligned(spec)
    item = seed_of("aligned", [image.sha256 for image in concept.images], env.seed)
    starts = disjoint(model.layers.trained(spec.blocks, spec.targets), spec.rank, BASIS_SEED)
    with model.attach(starts, dtype=torch.float32) as adapters:
        module = AlignedLoRAs(model, adapters, concept, spec, item)
        fit_resumable(module, spec, env, updates(spec.steps))
        trained = adapters.loras()
    scale = spec.alpha / spec.rank
    return {role: LoRA(folded(lora, scale)) for role, lora in zip(ROLES, trained, strict=True)}
