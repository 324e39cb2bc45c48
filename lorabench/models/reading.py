"""Reading the pipeline of a model from a folder or a single file, in the configured precisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.loaders.single_file_utils import SingleFileComponentError
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

from lorabench.base import UserError
from lorabench.models.families import HINT, SDXL, index_of, parts_of
from lorabench.models.files import ModelFiles, model_folder

KINDS = (CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel)
ENCODERS: dict[str, Any] = {kind.__name__: kind for kind in KINDS}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
UNREADABLE = (OSError, ValueError, RuntimeError, SafetensorError, SingleFileComponentError)


def load_pipeline(
    pipeline_class: Any, denoiser_class: Any, source: ModelFiles | str | Path, device: str
) -> tuple[Any, ModelFiles]:
    """Return the pipeline of a model on a device, and its files. Nothing is downloaded.

    Args:
        pipeline_class: Pipeline of diffusers for the family.
        denoiser_class: Its denoiser.
        source: Files of a model, "micro" (the packaged model), or a diffusers folder.
        device: Device of the denoiser; with `offload` "encoders" the other parts stay on the CPU.

    Raises:
        UserError: If the files are not of the family, or the weights do not fit the configurations.
    """
    files = source if isinstance(source, ModelFiles) else model_folder(source)
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    family = files.family
    try:
        pipeline = from_files(pipeline_class, denoiser_class, files)
    except UNREADABLE as error:
        raise UserError(f"{files.path} cannot be read as {family.title} ({first_line(error)}); {HINT}") from error
    for name in parts_of(files.config, family):
        part = getattr(pipeline, name)
        if any(parameter.is_meta for parameter in part.parameters()):
            raise UserError(f"{files.path} lacks weights of its {name}; download it again, or {HINT}")
        if name == family.denoiser or files.offload != "encoders":
            part.to(device)
    return pipeline, files


def from_files(pipeline_class: Any, denoiser_class: Any, files: ModelFiles) -> Any:
    """Read a pipeline with diffusers, which leaves missing weights on the meta device.

    A single file of SDXL contains all parts. Of other single files only the denoiser is read, because most contain
    nothing else; the other parts come from the folder of the configurations.
    """
    family, single = files.family, files.path.is_file()
    if single and family is SDXL:
        return pipeline_class.from_single_file(
            str(files.path),
            config=str(files.config),
            vae=read_vae(files, files.vae or files.path),
            dtype=DTYPES[files.dtype],
            local_files_only=True,
        )
    folder = files.config if single else files.path
    dtypes = {"default": DTYPES[files.dtype], "vae": DTYPES[files.vae_dtype]}
    encoders = [name for name in parts_of(folder, family) if name in family.encoders]
    parts: dict[str, Any] = {name: read_encoder(files, folder, name) for name in encoders}
    for name in set(family.encoders) - set(encoders):  # T5 of SD3 may be absent, which diffusers must know
        parts |= {name: None, name.replace("text_encoder", "tokenizer"): None}
    if files.vae:
        parts["vae"] = read_vae(files, files.vae)
    if single:
        parts[family.denoiser] = denoiser_class.from_single_file(
            str(files.path),
            config=str(files.config),
            subfolder=family.denoiser,
            torch_dtype=DTYPES[files.dtype],
            local_files_only=True,
        )
    return pipeline_class.from_pretrained(folder, dtype=dtypes, variant=files.variant, local_files_only=True, **parts)


def read_encoder(files: ModelFiles, folder: Path, name: str) -> Any:
    """Return a text encoder of a folder, with an error for missing weights: transformers would draw them at random."""
    kind = index_of(folder)[name][1]
    if kind not in ENCODERS:
        raise UserError(f"{folder / name} is a {kind}, not one of {', '.join(ENCODERS)}; {HINT}")
    encoder, facts = ENCODERS[kind].from_pretrained(
        folder / name,
        dtype=DTYPES[files.dtype],
        variant=files.variant,
        local_files_only=True,
        output_loading_info=True,
    )
    if missing := sorted(facts["missing_keys"]):
        raise UserError(f"{folder / name} lacks {missing[0]}; download it again, or {HINT}")
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


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return str(error).strip().splitlines()[0]
