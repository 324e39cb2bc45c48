"""`DreamBoothLoRA` on SD3 and FLUX.1 against the formulas of diffusers' training scripts.

examples/dreambooth/train_dreambooth_lora_sd3.py and train_dreambooth_lora_flux.py: draws, noise, transformer inputs,
preconditioning and both halves of the loss are written out here. Only the random generators are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_lora
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor
from transformers_tiny import tiny_transformer

from lorabench.config.schemas import LoRASpec
from lorabench.data.concepts import Reference
from lorabench.data.pairs import Pair
from lorabench.personalization.dreambooth import DreamBoothLoRA

PRIOR_WEIGHT = 0.5
GUIDANCE = 1.0  # of the script's README
BATCH = 2


@pytest.fixture(scope="module", params=["sd3", "dev", "schnell"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_transformer(request.param, tmp_path_factory.mktemp("model"))


def photo(prompt: str, seed: int) -> Reference:
    """Return an image of random pixels; in a plain one the autoencoder's normalization would amplify rounding."""
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return Reference("mug", prompt, f"sha-{seed}", partial(Image.fromarray, pixels))


def codes(model: Any, image: Reference) -> Tensor:
    """Return the scaled latents of an image [1, c, h, w], the mean of the encoder's distribution."""
    vae = model.pipeline.vae
    pixels = torch.tensor(np.asarray(image.load())).permute(2, 0, 1)[None] / 127.5 - 1
    return (vae.encode(pixels).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor


def script_prediction(model: Any, noisy: Tensor, timesteps: Tensor, prompts: list[str], guidance: float) -> Tensor:
    """Return the prediction of the transformer with the inputs of the script of its family."""
    pipeline: Any = model.pipeline
    if not isinstance(pipeline, FluxPipeline):
        states, _, pooled, _ = pipeline.encode_prompt(prompts, None, None, do_classifier_free_guidance=False)
        return pipeline.transformer(
            hidden_states=noisy, timestep=timesteps, encoder_hidden_states=states, pooled_projections=pooled,
            return_dict=False,
        )[0]  # fmt: skip
    count, channels, height, width = noisy.shape
    states, pooled, text_ids = pipeline.encode_prompt(prompts, None)
    ids = pipeline._prepare_latent_image_ids(count, height // 2, width // 2, noisy.device, noisy.dtype)
    embeds = pipeline.transformer.config.guidance_embeds
    packed = pipeline.transformer(
        hidden_states=pipeline._pack_latents(noisy, count, channels, height, width), timestep=timesteps / 1000,
        guidance=torch.tensor([guidance]).expand(count) if embeds else None, pooled_projections=pooled,
        encoder_hidden_states=states, txt_ids=text_ids, img_ids=ids, return_dict=False,
    )[0]  # fmt: skip
    factor = pipeline.vae_scale_factor
    return pipeline._unpack_latents(packed, height * factor, width * factor, factor)


def script_loss(
    model: Any, halves: Sequence[Reference], law: str, loss: str, draw: torch.Generator, guidance: float = GUIDANCE
) -> Tensor:
    """Return the loss of a batch of one image with one image of its class, each as often as the batch is large."""
    scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(model.pipeline.scheduler.config)
    inputs, noises, indices = [], [], []
    for image in halves:
        torch.randint(1, (BATCH,), generator=draw)  # the only image
        normal = law == "logit_normal"
        u = torch.sigmoid(torch.randn(BATCH, generator=draw)) if normal else torch.rand(BATCH, generator=draw)
        indices.append((u * scheduler.config.num_train_timesteps).long())
        inputs.append(codes(model, image).expand(BATCH, -1, -1, -1))
        noises.append(torch.randn(BATCH, *inputs[-1].shape[1:], generator=draw))
    model_input, noise, index = torch.cat(inputs), torch.cat(noises), torch.cat(indices)
    timesteps, sigmas = scheduler.timesteps[index], scheduler.sigmas[index].view(-1, 1, 1, 1)
    noisy = sigmas * noise + (1.0 - sigmas) * model_input
    prompts = [image.prompt for image in halves for _ in range(BATCH)]
    prediction, target = script_prediction(model, noisy, timesteps, prompts, guidance), noise - model_input
    if loss == "x0":  # the SD3 script's --precondition_outputs
        prediction, target = prediction * (-sigmas) + noisy, model_input
    own, prior = (prediction - target).square().chunk(2)
    return own.mean() + PRIOR_WEIGHT * prior.mean()


@pytest.mark.parametrize("law", ["uniform", "logit_normal"])
@pytest.mark.parametrize("loss", ["native", "x0"])
def test_loss_is_that_of_diffusers_script(model: Any, pair: Pair, lora_spec: LoRASpec, law: str, loss: str) -> None:
    spec = replace(lora_spec, batch=BATCH, prior_weight=PRIOR_WEIGHT, timesteps=law, loss=loss)
    own, prior = photo("a sks mug", 0), photo("a mug", 1)
    concept = replace(pair.contents[0], images=(own,))
    with model.attach([random_lora(model, 2, "start", 0.1)], dtype=torch.float32) as adapters, torch.no_grad():
        module = DreamBoothLoRA(model, adapters, concept, spec, 0, [prior])
        module.log = lambda *_, **__: None
        found = module.training_step(5)

        def expected(guidance: float = GUIDANCE) -> Tensor:
            draw = torch.Generator().manual_seed(module.step_seed(5))
            return script_loss(model, (own, prior), law, loss, draw, guidance)

        torch.testing.assert_close(found, expected(), rtol=1e-5, atol=1e-6)
        if model.guidance == "embedded":
            assert not torch.allclose(found, expected(guidance=3.5), rtol=1e-4)
