"""Export of checkpoints to the shipped folder: a `StableDiffusionXLPipeline` in half precision."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

from lorabench.base import UserError
from pretraining.architecture import build_pipeline, build_vae
from pretraining.unet import Denoiser

COURSE = "training.json"


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


def check_target(folder: Path, names: Sequence[str]) -> None:
    """Check that files may be written into the parent of a folder: there are none, or the folder is an export's.

    Args:
        folder: The folder of a pipeline; an export has training.json next to it.
        names: Of the files, relative to the parent.

    Raises:
        UserError: If one of them exists and no export wrote the folder.
    """
    try:
        is_export = "samples" in json.loads((folder.parent / COURSE).read_text())
    except (OSError, ValueError, TypeError):
        is_export = False
    taken = [path for name in names if os.path.lexists(path := folder.parent / name)]
    if taken and not (is_export and (folder / "model_index.json").is_file()):
        raise UserError(f"{taken[0]} was not written by an export and is left as it is; use another folder")


def export(checkpoint: Path, vae: Path, folder: Path) -> int:
    """Write the pipeline to `folder` in float16, and training.json next to it; return its size in bytes.

    Raises:
        UserError: If a file is there that no export wrote.
    """
    check_target(folder, [COURSE, *(f"{folder.name}/{path.name}" for path in folder.glob("*"))])
    assemble(checkpoint, vae).to(torch.float16).save_pretrained(folder, safe_serialization=True)
    course = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["course"]
    (folder.parent / COURSE).write_text(json.dumps({"samples": course["samples"]}) + "\n")
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
