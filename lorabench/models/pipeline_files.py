"""The files of a pipeline: which files a folder or a single file must contain. Imports nothing heavy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lorabench.base import UserError
from lorabench.models.families import FAMILIES, HINT, SDXL, Family, family_of, index_of, parts_of
from lorabench.models.schedulers import check_deterministic

PREDICTION_TYPES = ("epsilon", "v_prediction")
SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")  # of a flow-matching scheduler
SETTINGS = (".json", ".txt", ".model")  # configurations and vocabularies
VOCABULARIES = ("vocab.json", "tokenizer.json", "spiece.model")  # a tokenizer has one of them
# Start of a tensor name that only one kind of file has; the first match names the kind.
OTHER_KINDS = {
    "conditioner.embedders.0.model.": "an SDXL refiner",
    "cond_stage_model.transformer.": "a Stable Diffusion 1 checkpoint",
    "cond_stage_model.model.": "a Stable Diffusion 2 checkpoint",
    "lora_unet_": "a LoRA",
    "unet.": "a LoRA",
    "first_stage_model.": "a VAE or an incomplete checkpoint",
}
FLUX_2 = "double_stream_modulation"  # in a tensor name: FLUX.2, whose blocks have the names of FLUX.1's


def weight_patterns(variant: str | None) -> list[str]:
    """Return glob patterns of the weights in a repository, which may have each in two precisions and three formats."""
    end = f".{variant}" if variant else ""
    denoisers = dict.fromkeys((family.denoiser for family in FAMILIES), "diffusion_pytorch_model")
    stems = {**denoisers, "vae": "diffusion_pytorch_model", "text_encoder*": "model"}
    return [f"{part}/{stem}{end}{shard}.safetensors" for part, stem in stems.items() for shard in ("", "-*")]


def variant_of(path: Path, variant: str | None) -> str | None:
    """Return the variant that a folder has: the wanted one, else none if it has weights without, else its own."""
    files = [file for family in FAMILIES for file in path.glob(f"{family.denoiser}/*.safetensors")]
    found = {file.stem.partition(".")[2].partition("-")[0] for file in files}
    if variant in found or not found or "" in found:
        return variant if variant in found else None
    return min(found)


def used_files(folder: Path, variant: str | None, weights: bool = True) -> list[Path]:
    """Return the files of a diffusers folder that loading it reads, in a fixed order.

    Args:
        weights: Whether the weights are loaded from the folder too.
    """
    index: dict[str, Any] = json.loads((folder / "model_index.json").read_text())
    parts = sorted(name for name, value in index.items() if isinstance(value, list) and (folder / name).is_dir())
    return [
        folder / "model_index.json",
        *(file for part in parts for file in used_part(folder / part, variant, weights)),
    ]


def used_part(folder: Path, variant: str | None, weights: bool = True) -> list[Path]:
    """Return the files of one part that loading it reads: configurations, vocabularies and weights of the variant."""
    files = sorted(folder.iterdir())
    found = [file for file in files if file.suffix in SETTINGS and ".index." not in file.name]
    of = {file: file.stem.partition(".")[2].partition("-")[0] for file in files if file.suffix == ".safetensors"}
    chosen = variant if variant in of.values() else ""
    return [*found, *(file for file, named in of.items() if weights and named == (chosen or ""))]


def check_single_file(path: Path) -> Family:
    """Return the family of a single file, by the names of its tensors.

    Raises:
        UserError: If it is not a checkpoint of a known family; names the kind of file it is.
    """
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        raise UserError(
            f"{path} is not a safetensors file; pickled checkpoints can run code: convert it to safetensors"
        )
    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); download it again") from None
    flux_2 = any(FLUX_2 in name for name in names)
    for family in FAMILIES:
        if any(name.startswith(family.single_file) for name in names) and not flux_2:
            return family
    kind = next((kind for start, kind in OTHER_KINDS.items() if any(name.startswith(start) for name in names)), None)
    first = names[0] if names else "nothing"
    found = "a FLUX.2 model" if flux_2 else kind or f"not a known model (its first tensor is {first})"
    raise UserError(f"{path} is {found}, not a checkpoint of a text-to-image model that is supported; {HINT}")


def check_configs(folder: Path, complete: bool = True) -> Family:
    """Check that a folder has the configurations of a pipeline that can be trained on and sampled from.

    Args:
        folder: Folder of diffusers.
        complete: Whether it must hold the weights too.

    Returns:
        The family of the model.

    Raises:
        UserError: If it is another model, lacks a file, or its scheduler is not supported.
    """
    family, index = family_of(folder), index_of(folder)
    parts = parts_of(folder, family)
    needed = {"scheduler/scheduler_config.json", *(f"{part}/config.json" for part in parts)}
    needed |= {f"{part}/*.safetensors" for part in parts if complete}
    if lacking := sorted(pattern for pattern in needed if not any(folder.glob(pattern))):
        raise UserError(f"{folder} is an incomplete folder of {family.title} without {lacking[0]}; {HINT}")
    for part in parts[2:]:  # without vocabularies transformers creates tokenizers that know no word
        tokenizer = part.replace("text_encoder", "tokenizer")
        if not any((folder / tokenizer / name).is_file() for name in VOCABULARIES):
            lacking = [f"{tokenizer}/{VOCABULARIES[0]}"]
            raise UserError(f"{folder} is an incomplete folder of {family.title} without {lacking[0]}; {HINT}")
    check_scheduler(folder, family, index)
    return family


def check_scheduler(folder: Path, family: Family, index: dict[str, Any]) -> None:
    """Raise UserError unless the scheduler is deterministic and its predictions are those of the noise process."""
    settings: dict[str, Any] = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    _, name = index.get("scheduler") or (None, settings.get("_class_name"))
    if family is not SDXL:
        if name != "FlowMatchEulerDiscreteScheduler":
            raise UserError(f"{folder} samples with {name}; use FlowMatchEulerDiscreteScheduler in its configuration")
        check_flow_scheduler(folder, settings)
        return
    if settings.get("prediction_type", "epsilon") not in PREDICTION_TYPES:
        raise UserError(f"{folder} predicts {settings['prediction_type']}, not one of {PREDICTION_TYPES}; {HINT}")
    check_deterministic(str(name), settings, str(folder))


def check_flow_scheduler(folder: Path, settings: dict[str, Any]) -> None:
    """Raise UserError unless diffusers' FlowMatchEulerDiscreteScheduler and our Euler steps allow the settings."""
    if odd := [key for key in ("stochastic_sampling", "invert_sigmas") if settings.get(key)]:
        raise UserError(f"{folder} has a scheduler with {odd[0]}: true; use false in its configuration")
    if len(several := [key for key in SPACINGS if settings.get(key)]) > 1:
        raise UserError(f"{folder} has a scheduler with {several[0]} and {several[1]}; use one in its configuration")
    for key, usable in (("num_train_timesteps", (1000,)), ("time_shift_type", ("exponential", "linear"))):
        if (value := settings.get(key, usable[0])) not in usable:
            raise UserError(f"{folder} has a scheduler with {key}: {value}; use {usable[0]} in its configuration")


def check_resolution(config: Path, resolution: int | None) -> None:
    """Raise UserError unless the denoiser can process latents of this resolution."""
    if resolution is None:
        return
    family = family_of(config)
    settings = json.loads((config / family.denoiser / "config.json").read_text())
    channels = json.loads((config / "vae" / "config.json").read_text())["block_out_channels"]
    halvings = len(settings["down_block_types"]) - 1 if family is SDXL else 1  # transformers read patches of 2 x 2
    multiple = 2 ** (len(channels) - 1 + halvings)
    if resolution % multiple:
        raise UserError(f"model.resolution={resolution} must be a multiple of {multiple}")
