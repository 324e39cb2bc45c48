"""Reading the pipeline of a model from a folder or a single file, in the configured precisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import SingleFileComponentError
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from lorabench.base import UserError
from lorabench.models.files import ModelFiles
from lorabench.models.sdxl_files import HINT, PARTS

ENCODERS: dict[str, Any] = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
UNREADABLE = (OSError, ValueError, RuntimeError, SafetensorError, SingleFileComponentError)


def read_pipeline(files: ModelFiles) -> StableDiffusionXLPipeline:
    """Return the pipeline on the CPU. Nothing is downloaded.

    Args:
        files: Files and precisions of the model.

    Raises:
        UserError: If the weights do not fit the configurations.
    """
    try:
        pipeline = from_files(files)
    except UNREADABLE as error:
        raise UserError(f"{files.path} cannot be read as an SDXL model ({first_line(error)}); {HINT}") from error
    for name in PARTS:
        if any(parameter.is_meta for parameter in getattr(pipeline, name).parameters()):
            raise UserError(f"{files.path} lacks weights of its {name}; download it again, or {HINT}")
    return pipeline


def from_files(files: ModelFiles) -> StableDiffusionXLPipeline:
    """Read a pipeline with diffusers. Missing weights stay on the meta device."""
    if files.path.is_file():
        return StableDiffusionXLPipeline.from_single_file(
            str(files.path),
            config=str(files.config),
            vae=read_vae(files, files.vae or files.path),
            dtype=DTYPES[files.dtype],
            local_files_only=True,
        )
    dtypes = {"default": DTYPES[files.dtype], "vae": DTYPES[files.vae_dtype]}
    parts: dict[str, Any] = {name: read_encoder(files, name) for name in ENCODERS}
    if files.vae:
        parts["vae"] = read_vae(files, files.vae)
    return StableDiffusionXLPipeline.from_pretrained(
        files.path, dtype=dtypes, variant=files.variant, local_files_only=True, **parts
    )


def read_encoder(files: ModelFiles, name: str) -> Any:
    """Return a text encoder of a folder. Missing weights are an error, because transformers would initialize them."""
    encoder, facts = ENCODERS[name].from_pretrained(
        files.path / name,
        dtype=DTYPES[files.dtype],
        variant=files.variant,
        local_files_only=True,
        output_loading_info=True,
    )
    if missing := sorted(facts["missing_keys"]):
        raise UserError(f"{files.path / name} lacks {missing[0]}; download it again, or {HINT}")
    return encoder


def read_vae(files: ModelFiles, path: Path) -> AutoencoderKL:
    """Return the autoencoder of a folder or of a single file, which may be a complete checkpoint."""
    dtype = DTYPES[files.vae_dtype]
    try:
        if path.is_file():
            config = str(files.config / "vae")
            return AutoencoderKL.from_single_file(str(path), config=config, dtype=dtype, local_files_only=True)
        return AutoencoderKL.from_pretrained(path, dtype=dtype, local_files_only=True)
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read as an autoencoder ({first_line(error)}); correct model.vae") from error


def set_attention(unet: UNet2DConditionModel, attention: str) -> None:
    """Set the implementation of attention. Results are equal up to rounding.

    Args:
        unet: Denoiser.
        attention: "sdpa" for PyTorch's fused kernels, "math" for plain products, "sliced" for one head at a time (for
            GPUs without fused kernels), "auto" for "sdpa" on a GPU and "math" on a CPU, which is 25 % faster there.
    """
    if attention == "sliced":
        unet.set_attention_slice("max")
    else:
        plain = attention == "math" or (attention == "auto" and unet.device.type == "cpu")
        unet.set_attn_processor(AttnProcessor() if plain else AttnProcessor2_0())


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return str(error).strip().splitlines()[0]
