"""Reading the pipeline of a model from a folder or a single file, in the configured precisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from diffusers.loaders.single_file_utils import SingleFileComponentError
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

from lorabench.base import UserError
from lorabench.models.families import HINT, SDXL, index_of, parts_of
from lorabench.models.files import ModelFiles, model_folder

KINDS = (CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel)
ENCODERS: dict[str, Any] = {kind.__name__: kind for kind in KINDS}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CHECKPOINT = "model.diffusion_model."  # start of the denoiser's tensors in a checkpoint that has other parts too
UNREADABLE = (OSError, LookupError, ValueError, RuntimeError, SafetensorError, SingleFileComponentError)


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
        check_tensors(denoiser_class, files)
        parts[family.denoiser] = denoiser_class.from_single_file(
            str(files.path),
            config=str(files.config),
            subfolder=family.denoiser,
            torch_dtype=DTYPES[files.dtype],
            local_files_only=True,
        )
    return pipeline_class.from_pretrained(folder, dtype=dtypes, variant=files.variant, local_files_only=True, **parts)


def check_tensors(denoiser_class: Any, files: ModelFiles) -> None:
    """Check that the denoiser has a place for each of its tensors in a single file: diffusers ignores the others.

    Args:
        denoiser_class: Denoiser of diffusers for the family.
        files: The model.

    Raises:
        LookupError: If a tensor of the original code is missing.
        UserError: If a tensor has no place.
    """
    with safe_open(files.path, framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    inside = [name for name in shapes if name.startswith(CHECKPOINT)] or list(shapes)
    tensors = {name: torch.empty(shapes[name], device="meta") for name in inside}
    convert = SINGLE_FILE_LOADABLE_CLASSES[denoiser_class.__name__]["checkpoint_mapping_fn"]
    converted = convert(tensors)  # takes what it converts out of `tensors`
    with torch.device("meta"):
        config = denoiser_class.load_config(files.config, subfolder=files.family.denoiser, local_files_only=True)
        known = denoiser_class.from_config(config).state_dict()
    if odd := [*tensors, *(name for name in converted if name not in known)]:
        raise UserError(
            f"{files.path} has {odd[0]}, for which {files.config} has no layer; use model.config=<the folder of its "
            f"configurations>, or a checkpoint of {files.family.title}"
        )


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
    """Return the first line of an error's message. A failed look-up is that of a tensor that is not in the file."""
    line = str(error).strip().splitlines()[0]
    return f"a tensor is missing: {line}" if isinstance(error, LookupError) else line
