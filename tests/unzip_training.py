"""A small training of UnZipLoRA, and the same network with dense updates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from conftest import reference
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from lorabench.base import seed_of
from lorabench.config.schemas import LoRASpec
from lorabench.data.concepts import ROLES, Concept
from lorabench.data.pairs import Pair
from lorabench.data.pairs import pair as make_pair
from lorabench.data.scenes import Prompts
from lorabench.engine.lightning import fit
from lorabench.lora.factors import Factors
from lorabench.merging.method import load
from lorabench.models.autoencoder import pixels
from lorabench.models.sdxl.model import SDXL
from lorabench.personalization.initial import random_factors
from lorabench.personalization.schemes.unziplora import UnZipJob
from lorabench.personalization.unzip import UnZipping

STEPS = 8  # columns are chosen after steps 1 and 5


def stylised_pair(*colors: str) -> Pair:
    """Return a mug in ink style that is known from images of one color each."""
    prompts = Prompts(style_token="ink")
    of_content, of_style = (
        tuple(reference("mug", caption, color) for color in colors)
        for caption in (prompts.content("mug"), prompts.style("mug"))
    )
    content = Concept("mug_1", "content", "mug", of_content, of_content, token="sks")
    return make_pair((content,), (Concept("ink_1", "style", "ink style", of_style, of_style, token="ink"),), prompts)


def plain_job(lora_spec: LoRASpec) -> UnZipJob:
    """Return a job with a constant rate and unclipped gradients."""
    return job_of(replace(lora_spec, steps=STEPS, warmup=0, max_grad_norm=None))


def job_of(spec: LoRASpec, preset: str = "unziplora", **settings: Any) -> UnZipJob:
    """Return the job of two images; columns are chosen twice."""
    training = load(f"direct+training.{preset}", **{"recalibrations": 2, "columns": 0.3, **settings}).training
    found: Any = training.outputs(stylised_pair("red", "blue"), spec)[0].job
    return found


@contextmanager
def trainee(model: SDXL, job: UnZipJob) -> Iterator[UnZipping]:
    layers = model.layers.trained()
    starts = [random_factors(layers, job.recipe.rank, seed_of("start", role), job.scheme.initial_up) for role in ROLES]
    with model.attach(starts, dtype=torch.float32) as adapters:
        yield UnZipping(model, adapters, job, 0)


class Dense:
    """W x + sum_k o_k . U_k D_k x_k of every trained layer, as hooks on the plain layers.

    x_k is the content prompt's or the style prompt's states in the keys and values of cross-attention.
    """

    def __init__(self, model: SDXL, names: list[str], factors: list[list[Factors]], scale: float):
        self.model, self.scale = model, scale
        self.ups = [[nn.Parameter(each.up.detach().clone()) for each in several] for several in factors]
        self.downs = [[nn.Parameter(each.down.detach().clone()) for each in several] for several in factors]
        self.o: list[list[Tensor]] = []
        self.own: list[Tensor] = []
        self.hooks = [
            model.unet.get_submodule(name).register_forward_hook(self.added(name, index))
            for index, name in enumerate(names)
        ]

    def added(self, name: str, index: int) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            for k in range(2):
                x = self.own[k] if name.endswith(("attn2.to_k", "attn2.to_v")) else inputs[0]
                update = self.scale * self.o[k][index][:, None] * (self.ups[k][index] @ self.downs[k][index])
                output = output + x @ update.T
            return output

        return hook

    def loss(self, module: UnZipping, step: int, m: Any, v: Any, weight: float | None) -> Tensor:
        """Return the loss of a step; `weight` of the overlap, None while all columns learn."""
        model, spec, prompts = self.model, module.spec, module.job.prompts
        self.o = [
            [mask * vector if weight else vector.detach() for mask, vector in zip(m[k], v[k], strict=True)]
            for k in range(2)
        ]
        self.own = [model.encode_prompts([each]).tensors[0].expand(spec.batch, -1, -1) for each in prompts[1:]]
        latents = model.encode_images(pixels([each.image(model.resolution) for each in module.job.concept.images]))
        draw = torch.Generator().manual_seed(seed_of(0, step))
        picks = torch.randint(len(latents), (spec.batch,), generator=draw)
        t = torch.randint(1000, (spec.batch,), generator=draw)
        noise = torch.randn(spec.batch, *latents.shape[1:], generator=draw)
        words = model.encode_prompts([prompts.full] * spec.batch)
        prediction = model.predict(model.process.add_noise(latents[picks], noise, t), t, words)
        loss = mse_loss(prediction, model.process.target(latents[picks], noise, t))
        if weight:
            shares = [(content * style).abs().mean() for content, style in zip(*self.o, strict=True)]
            loss = loss + weight * torch.stack(shares).mean()
        return loss

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()


@contextmanager
def plain(module: UnZipping) -> Iterator[None]:
    """Take the adapters off within the block."""
    for name, layer in module.layers.items():
        module.model.denoiser.set_submodule(name, layer.base)
    yield
    for name, layer in module.layers.items():
        module.model.denoiser.set_submodule(name, layer)


def fit_module(module: UnZipping, steps: int) -> None:
    fit(module, steps, module.model.device, "32-true")


def slope(tensor: Tensor) -> Tensor:
    """Return the gradient of a tensor that has one."""
    assert tensor.grad is not None
    return tensor.grad


def backward(module: UnZipping, step: int) -> None:
    """Run the forward and the backward pass of a step, without Lightning."""
    module.log = lambda *arguments, **options: None
    module.zero_grad()
    loss = module.training_step(step)
    loss.backward()
    module.loss = loss.detach()
