"""Export of checkpoints to the shipped folder: a `StableDiffusionXLPipeline` in half precision."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

from pretraining.architecture import build_pipeline, build_vae
from pretraining.unet import Denoiser


def averaged(checkpoint: Path) -> Denoiser:
    """Return the denoiser with the moving average of its weights, from a checkpoint of `python -m pretraining unet`."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    prefix = "ema.module."
    model = Denoiser()
    model.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    return model.eval()


def assemble(checkpoint: Path, vae: Path) -> StableDiffusionXLPipeline:
    """Return the complete pipeline in fp32."""
    model, autoencoder = averaged(checkpoint), build_vae()
    autoencoder.load_state_dict(AutoencoderKL.from_pretrained(vae).state_dict())  # without its path in the config
    return build_pipeline(
        unet=model.unet,
        vae=autoencoder,
        text_encoders=(model.text_encoder, model.text_encoder_2),
    )


def export(checkpoint: Path, vae: Path, folder: Path) -> int:
    """Write the pipeline to `folder` in float16, and training.json next to it; return its size in bytes."""
    assemble(checkpoint, vae).to(torch.float16).save_pretrained(folder, safe_serialization=True)
    course = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["course"]
    (folder.parent / "training.json").write_text(json.dumps({"samples": course["samples"]}) + "\n")
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
