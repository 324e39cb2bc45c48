"""Checks of the files of an SDXL model: a folder or a single file. Imports nothing heavy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lorabench.base import UserError
from lorabench.models.schedulers import check_deterministic

PREDICTION_TYPES = ("epsilon", "v_prediction")
HINT = "use model.path=<a diffusers folder, an SDXL .safetensors checkpoint or a hub id>, or model=micro"
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
SETTINGS = (".json", ".txt", ".model")  # configurations and vocabularies
VOCABULARIES = ("vocab.json", "tokenizer.json")  # a tokenizer has one of them
# Start of a tensor name that only one kind of file has; the first match names the kind.
KINDS = {
    "conditioner.embedders.1.model.": "SDXL",
    "conditioner.embedders.0.model.": "an SDXL refiner",
    "cond_stage_model.transformer.": "a Stable Diffusion 1 checkpoint",
    "cond_stage_model.model.": "a Stable Diffusion 2 checkpoint",
    "model.diffusion_model.joint_blocks.": "a Stable Diffusion 3 checkpoint",
    "model.diffusion_model.double_blocks.": "a Flux checkpoint",
    "double_blocks.": "a Flux checkpoint",
    "lora_unet_": "a LoRA",
    "unet.": "a LoRA",
    "first_stage_model.": "a VAE or an incomplete checkpoint",
}


def weight_patterns(variant: str | None) -> list[str]:
    """Return glob patterns of the weights in a repository, which may have each in two precisions and three formats."""
    end = f".{variant}" if variant else ""
    stems = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder*": "model"}
    return [f"{part}/{stem}{end}{shard}.safetensors" for part, stem in stems.items() for shard in ("", "-*")]


def variant_of(path: Path, variant: str | None) -> str | None:
    """Return the variant that a folder has: the wanted one, else none if it has weights without, else its own."""
    names = [file.name.removesuffix(".safetensors") for file in path.glob("unet/*.safetensors")]
    found = {name.partition(".")[2].partition("-")[0] for name in names}
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


def check_single_file(path: Path) -> None:
    """Check that the tensors of a file have the names of an SDXL checkpoint.

    Raises:
        UserError: If they do not; names the kind of file it is.
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
    kind = next((kind for prefix, kind in KINDS.items() if any(name.startswith(prefix) for name in names)), None)
    if kind != "SDXL":
        first = names[0] if names else "nothing"
        found = kind or f"not a known model (its first tensor is {first})"
        raise UserError(f"{path} is {found}, not an SDXL checkpoint; {HINT}")


def check_configs(folder: Path, complete: bool = True) -> None:
    """Check that a folder has the configurations of an SDXL pipeline that can be trained on and sampled from.

    Args:
        folder: Folder of diffusers.
        complete: Whether it must hold the weights too.

    Raises:
        UserError: If it is another model, lacks a file, or its scheduler is not supported.
    """
    try:
        index = json.loads((folder / "model_index.json").read_text())
        kind = index["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder} is not a diffusers model folder; {HINT}") from None
    if not kind.startswith("StableDiffusionXL"):
        raise UserError(f"{folder} holds a {kind}, not an SDXL model; {HINT}")
    needed = {"scheduler/scheduler_config.json", *(f"{part}/config.json" for part in PARTS)}
    needed |= {f"{part}/*.safetensors" for part in PARTS if complete}
    if lacking := sorted(pattern for pattern in needed if not any(folder.glob(pattern))):
        raise UserError(f"{folder} is an incomplete SDXL folder without {lacking[0]}; {HINT}")
    for part in ("tokenizer", "tokenizer_2"):  # without them transformers creates tokenizers that know no word
        if not any((folder / part / name).is_file() for name in VOCABULARIES):
            raise UserError(f"{folder} is an incomplete SDXL folder without {part}/{VOCABULARIES[0]}; {HINT}")
    check_scheduler(folder, index)


def check_scheduler(folder: Path, index: dict[str, Any]) -> None:
    """Raise UserError unless the scheduler is deterministic and the noise process supports its prediction type."""
    settings: dict[str, Any] = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    if settings.get("prediction_type", "epsilon") not in PREDICTION_TYPES:
        raise UserError(f"{folder} predicts {settings['prediction_type']}, not one of {PREDICTION_TYPES}; {HINT}")
    _, name = index.get("scheduler") or (None, settings.get("_class_name"))
    check_deterministic(str(name), settings, str(folder))


def check_resolution(config: Path, resolution: int | None) -> None:
    """Raise UserError unless latents of this resolution can be halved as often as the UNet does."""
    if resolution is None:
        return
    blocks = json.loads((config / "unet" / "config.json").read_text())["down_block_types"]
    channels = json.loads((config / "vae" / "config.json").read_text())["block_out_channels"]
    multiple = 2 ** (len(channels) - 1 + len(blocks) - 1)
    if resolution % multiple:
        raise UserError(f"model.resolution={resolution} must be a multiple of {multiple}")
