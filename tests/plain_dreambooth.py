"""DreamBooth-LoRA as in diffusers' script (peft adapters, diffusers' schedulers, a plain loop), as a reference.

Only the random draws are ours: images, noise and timesteps from the same generators, and the same initial factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import compute_snr
from peft import LoraConfig
from torch import Tensor
from torch.nn.functional import mse_loss
from torchvision.transforms.functional import pil_to_tensor

from lorabench.base import seed_of
from lorabench.config.schemas import LoRASpec
from lorabench.data.concepts import Concept, Reference
from lorabench.models.files import model_folder
from lorabench.models.shapes import layer_map
from lorabench.personalization.initial import initial

UNET_TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]
ENCODERS = ("text_encoder", "text_encoder_2")


def train(folder: Path, concept: Concept, spec: LoRASpec, seed: int, prior: Sequence[Reference] = ()) -> dict[str, Any]:
    """Return {"<part>.<layer>": (lora_A, lora_B * alpha / rank)} after spec.steps updates."""
    assert spec.max_grad_norm is not None
    pipeline: Any = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
    noise_scheduler: Any = DDPMScheduler.from_config(pipeline.scheduler.config)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
        part.requires_grad_(False)
    item = seed_of("personalise", concept.identity(), seed)
    layers = layer_map(model_folder(folder))
    starts = {"unet": initial(layers.trained(), spec.rank, item)}
    if spec.text_encoders:
        for name in ENCODERS:
            head, text = f"{name}.", layers.trained_text()
            own = {path.removeprefix(head): layer for path, layer in text.items() if path.startswith(head)}
            starts[name] = initial(own, spec.rank, seed_of(item, name))
    for name, start in starts.items():
        targets = UNET_TARGETS if name == "unet" else TEXT_TARGETS
        getattr(pipeline, name).add_adapter(
            LoraConfig(r=spec.rank, lora_alpha=int(spec.alpha), init_lora_weights="gaussian", target_modules=targets)
        )
        layers = adapted(pipeline, name)
        assert layers.keys() == set(start)
        for layer, (down, up) in layers.items():
            down.data.copy_(start[layer].down)
            up.data.copy_(start[layer].up)
    groups = [
        {"params": [factor for pair in adapted(pipeline, name).values() for factor in pair], "lr": rate}
        for name, rate in zip(starts, (spec.lr, spec.text_lr, spec.text_lr), strict=False)
    ]
    slow, fast = spec.betas
    optimizer = torch.optim.AdamW(groups, lr=spec.lr, betas=(slow, fast), weight_decay=spec.weight_decay)
    lr_scheduler = get_scheduler(  # without warm-up, which the tests of the schedule cover
        spec.schedule, optimizer, num_warmup_steps=0, num_training_steps=spec.steps, num_cycles=spec.cycles
    )
    edge = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    with torch.no_grad():
        data = [encoded(pipeline, references, edge) for references in (concept.images, prior) if references]
    for update in range(spec.steps):
        for micro in range(spec.accumulate):
            draw = torch.Generator().manual_seed(seed_of(item, update * spec.accumulate + micro))
            drawn = [drawn_from(latents, prompts, spec.batch, draw) for latents, prompts in data]
            latents, t, noise = (torch.cat(each) for each in list(zip(*drawn, strict=True))[:3])
            prompts = [prompt for each in drawn for prompt in each[3]]
            prompt_embeds, _, pooled, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)
            add_time_ids = torch.tensor([[edge, edge, 0, 0, edge, edge]] * len(t))
            conditions = {"time_ids": add_time_ids, "text_embeds": pooled}
            noisy = noise_scheduler.add_noise(latents, noise, t)
            model_pred = pipeline.unet(noisy, t, prompt_embeds, added_cond_kwargs=conditions, return_dict=False)[0]
            velocity = noise_scheduler.config.prediction_type == "v_prediction"
            target = noise_scheduler.get_velocity(latents, noise, t) if velocity else noise
            loss = instance_loss(noise_scheduler, model_pred[: spec.batch], target[: spec.batch], t[: spec.batch], spec)
            if prior:
                loss = loss + spec.prior_weight * mse_loss(model_pred[spec.batch :], target[spec.batch :])
            (loss / spec.accumulate).backward()
        torch.nn.utils.clip_grad_norm_([factor for group in groups for factor in group["params"]], spec.max_grad_norm)
        optimizer.step()
        lr_scheduler.step()
        optimizer.zero_grad()
    return {
        f"{name}.{layer}": (down.detach(), up.detach() * spec.alpha / spec.rank)
        for name in starts
        for layer, (down, up) in adapted(pipeline, name).items()
    }


def instance_loss(noise_scheduler: Any, model_pred: Tensor, target: Tensor, t: Tensor, spec: LoRASpec) -> Tensor:
    """Compute the loss of diffusers' trainers with and without --snr_gamma."""
    if spec.min_snr is None:
        return mse_loss(model_pred, target)
    snr = compute_snr(noise_scheduler, t)
    weights = torch.stack([snr, spec.min_snr * torch.ones_like(snr)], dim=1).min(dim=1)[0]
    weights = weights / (snr if noise_scheduler.config.prediction_type == "epsilon" else snr + 1)
    loss = mse_loss(model_pred, target, reduction="none")
    return (loss.mean(dim=list(range(1, len(loss.shape)))) * weights).mean()


def adapted(pipeline: Any, name: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Return peft's factors of a part by layer."""
    layers = getattr(pipeline, name).named_modules()
    return {
        layer: (module.lora_A["default"].weight, module.lora_B["default"].weight)
        for layer, module in layers
        if hasattr(module, "lora_A") and "default" in module.lora_A
    }


def encoded(pipeline: Any, references: Sequence[Reference], edge: int) -> tuple[Tensor, list[str]]:
    images = [pil_to_tensor(reference.load()) / 127.5 - 1 for reference in references]
    assert all(image.shape == (3, edge, edge) for image in images)
    latents = pipeline.vae.encode(torch.stack(images)).latent_dist.mode() * pipeline.vae.config.scaling_factor
    return latents, [reference.prompt for reference in references]


def drawn_from(latents: Tensor, prompts: list[str], count: int, draw: torch.Generator) -> tuple[Any, ...]:
    picks = torch.randint(len(latents), (count,), generator=draw)
    t = torch.randint(1000, (count,), generator=draw)
    noise = torch.randn(count, *latents.shape[1:], generator=draw)
    return latents[picks], t, noise, [prompts[pick] for pick in picks]
