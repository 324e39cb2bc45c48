"""From a model's files to a pipeline of diffusers: folder or single file, its precisions, its way of attending."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

from lorabench.errors import UserError
from lorabench.models.files import HINT, ModelFiles

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def read_pipeline(files: ModelFiles) -> StableDiffusionXLPipeline:
    """The pipeline on the CPU, in the precisions of the configuration; nothing is fetched any more.

    Raises UserError where the weights do not fit the configurations beside them.
    """
    try:
        if files.path.is_file():
            return StableDiffusionXLPipeline.from_single_file(
                str(files.path),
                config=str(files.config),
                vae=read_vae(files, files.vae or files.path),
                dtype=DTYPES[files.dtype],
                local_files_only=True,
            )
        dtypes = {"default": DTYPES[files.dtype], "vae": DTYPES[files.vae_dtype]}
        parts = {"vae": read_vae(files, files.vae)} if files.vae else {}
        return StableDiffusionXLPipeline.from_pretrained(
            files.path, dtype=dtypes, variant=files.variant, local_files_only=True, **parts
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{files.path} cannot be read as an SDXL model ({first_line(error)}); {HINT}") from error


def read_vae(files: ModelFiles, path: Path) -> AutoencoderKL:
    """The autoencoder of a folder of its own, or of a single file, which may be a whole checkpoint."""
    dtype = DTYPES[files.vae_dtype]
    try:
        if path.is_file():
            config = str(files.config / "vae")
            return AutoencoderKL.from_single_file(str(path), config=config, dtype=dtype, local_files_only=True)
        return AutoencoderKL.from_pretrained(path, dtype=dtype, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read as an autoencoder ({first_line(error)}); correct model.vae") from error


def encoders_of(pipeline: StableDiffusionXLPipeline) -> tuple[Any, Any]:
    return pipeline.text_encoder, pipeline.text_encoder_2


def set_attention(unet: UNet2DConditionModel, attention: str) -> None:
    """How attention is computed: the results are equal up to rounding.

    "auto": PyTorch's fused kernels on a GPU; plain products on a CPU, where they are a quarter faster.
    "sliced": head by head, for a GPU without fused kernels.
    """
    if attention == "sliced":
        unet.set_attention_slice("max")
    else:
        plain = attention == "math" or (attention == "auto" and unet.device.type == "cpu")
        unet.set_attn_processor(AttnProcessor() if plain else AttnProcessor2_0())


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
