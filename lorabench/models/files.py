"""Where a model's files lie: a diffusers folder, a single-file checkpoint, or a repository of the hub.

Answered from names and headers, before anything heavy is imported. What is not an SDXL model is named for what it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lorabench.base import ASSETS, CONF, UserError
from lorabench.config.schemas import ModelSpec
from lorabench.models.hub import quiet_hub

MICRO = ASSETS / "micro_sdxl"
PREDICTION_TYPES = ("epsilon", "v_prediction")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
HINT = "type model.path=<a diffusers folder, an SDXL .safetensors checkpoint or a hub id>, or model=micro"
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
CONFIGS = ("*.json", "tokenizer*/*")
VOCABULARIES = ("vocab.json", "tokenizer.json")  # of a tokenizer, either
# What only a file of this kind has among its tensors; the first that matches names the file.
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


@dataclass(frozen=True)
class ModelFiles:
    """A model that is there.

    path: a diffusers folder or a single file.
    config: the folder of its configurations and tokenizers; of a diffusers folder, itself.
    vae: folder or file of the autoencoder that replaces its own.
    variant: of the weights' file names ("fp16"), where the folder has it.
    The other fields are those of the configuration (`ModelSpec`).
    """

    path: Path
    config: Path
    vae: Path | None = None
    variant: str | None = None
    dtype: str = "fp32"
    vae_dtype: str = "fp32"
    resolution: int | None = None
    attention: str = "auto"
    offload: str = "none"
    checkpointing: bool = False

    def unet_config(self) -> dict[str, Any]:
        return json.loads((self.config / "unet" / "config.json").read_text())

    def numbers(self) -> dict[str, Any]:
        """What changes the results beside the weights; attention, offload and checkpointing only change the cost."""
        neutral = ModelFiles(self.path, self.config)
        names = ("variant", "dtype", "vae_dtype", "resolution")
        return {name: getattr(self, name) for name in names if getattr(self, name) != getattr(neutral, name)}

    def sources(self) -> list[Path]:
        """Everything whose contents count: for the digest."""
        return list(dict.fromkeys(path for path in (self.path, self.config, self.vae) if path is not None))


def model_files(spec: ModelSpec) -> ModelFiles:
    """Find the model of a configuration, on the hub too.  Raises UserError unless it is an SDXL pipeline."""
    path = find(spec.path, [*CONFIGS, *weights(spec.variant)])
    if path.is_file():
        check_single_file(path)
        config = find(spec.config, CONFIGS)
    else:
        config = path
    check_configs(config, complete=path is config)
    check_resolution(config, spec.resolution)
    return ModelFiles(
        path=path,
        config=config,
        vae=find_vae(spec.vae) if spec.vae else None,
        variant=variant_of(path, spec.variant),
        dtype=spec.dtype,
        vae_dtype=spec.vae_dtype,
        resolution=spec.resolution,
        attention=spec.attention,
        offload=spec.offload,
        checkpointing=spec.checkpointing,
    )


def model_folder(path: str | Path) -> ModelFiles:
    """ "micro", the packaged model, or a diffusers folder, in fp32."""
    folder = find(str(path), ())
    check_configs(folder)
    return ModelFiles(folder, folder)


def find(source: str, patterns: Sequence[str]) -> Path:
    """ "micro", a folder, a file, or a repository of the hub, fetched if it is not in the hub's cache yet."""
    path = MICRO if source == "micro" else Path(source)
    if path.exists():
        return path
    if HUB_ID.fullmatch(source):
        return fetch(source, patterns)
    raise UserError(f"{source} is not a diffusers model folder or a checkpoint; {HINT}")


def weights(variant: str | None) -> list[str]:
    """Patterns of an SDXL repository's weights; the hub's has each in two precisions and three formats."""
    end = f".{variant}" if variant else ""
    stems = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder*": "model"}
    return [f"{part}/{stem}{end}{shard}.safetensors" for part, stem in stems.items() for shard in ("", "-*")]


def fetch(repository: str, patterns: Sequence[str]) -> Path:
    """The local folder of a repository of the hub, from its cache or downloaded."""
    from huggingface_hub import snapshot_download

    try:
        with quiet_hub():
            return Path(snapshot_download(repository, allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(
            f"{repository} is no path here and cannot be fetched from the hub ({reason}); download it where there is a "
            "connection and give its folder"
        ) from None


def find_vae(source: str) -> Path:
    path = Path(source)
    if not path.exists() and HUB_ID.fullmatch(source):
        path = fetch(source, ("config.json", "diffusion_pytorch_model.safetensors"))
    if path.is_file() and path.suffix == ".safetensors":
        return path
    if not (path / "config.json").is_file():
        raise UserError(f"model.vae={source} is no autoencoder; give a folder with config.json or a hub id")
    return path


def check_single_file(path: Path) -> None:
    """UserError unless the names of its tensors are those of an SDXL checkpoint."""
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        raise UserError(f"{path} is no safetensors file; pickled checkpoints can run code: convert it to safetensors")
    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); fetch it again") from None
    kind = next((kind for prefix, kind in KINDS.items() if any(name.startswith(prefix) for name in names)), None)
    if kind != "SDXL":
        first = names[0] if names else "nothing"
        found = kind or f"no model that is known here (its first tensor is {first})"
        raise UserError(f"{path} is {found}, not an SDXL checkpoint; {HINT}")


def check_configs(folder: Path, complete: bool = True) -> None:
    """UserError unless the folder holds the configurations of an SDXL pipeline that can be trained on.

    complete: whether it should hold the weights as well.
    """
    try:
        kind = json.loads((folder / "model_index.json").read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder} is not a diffusers model folder; {HINT}") from None
    if not kind.startswith("StableDiffusionXL"):
        raise UserError(f"{folder} holds a {kind}, not an SDXL model; {HINT}")
    needed = {"scheduler/scheduler_config.json", *(f"{part}/config.json" for part in PARTS)}
    needed |= {f"{part}/*.safetensors" for part in PARTS if complete}
    if lacking := sorted(pattern for pattern in needed if not any(folder.glob(pattern))):
        raise UserError(f"{folder} is an incomplete SDXL folder without {lacking[0]}; {HINT}")
    for part in ("tokenizer", "tokenizer_2"):  # where there is none transformers makes one that knows no word
        if not any((folder / part / name).is_file() for name in VOCABULARIES):
            raise UserError(f"{folder} is an incomplete SDXL folder without {part}/{VOCABULARIES[0]}; {HINT}")
    schedule: dict[str, Any] = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    if schedule.get("prediction_type", "epsilon") not in PREDICTION_TYPES:
        raise UserError(f"{folder} predicts {schedule['prediction_type']}, not one of {PREDICTION_TYPES}; {HINT}")


def check_resolution(config: Path, resolution: int | None) -> None:
    """UserError unless the UNet can halve latents of this resolution as often as it does."""
    if resolution is None:
        return
    blocks = json.loads((config / "unet" / "config.json").read_text())["down_block_types"]
    channels = json.loads((config / "vae" / "config.json").read_text())["block_out_channels"]
    multiple = 2 ** (len(channels) - 1 + len(blocks) - 1)
    if resolution % multiple:
        raise UserError(f"model.resolution={resolution} must be a multiple of {multiple}")


def variant_of(path: Path, variant: str | None) -> str | None:
    """The variant that the folder has: the wanted one, else weights without any, else what there is."""
    names = [file.name.removesuffix(".safetensors") for file in path.glob("unet/*.safetensors")]
    found = {name.partition(".")[2].partition("-")[0] for name in names}
    if variant in found or not found or "" in found:
        return variant if variant in found else None
    return min(found)


def preset(model: str | Path) -> ModelSpec:
    """The values of conf/model/<name>.yaml; for a folder, a file or a hub id those of "sdxl", with its own VAE."""
    name = str(model) if (CONF / "model" / f"{model}.yaml").is_file() else "sdxl"
    values: Any = OmegaConf.load(CONF / "model" / f"{name}.yaml")
    if "sdxl" in values.pop("defaults"):  # koala's are SDXL's but for a few
        values = OmegaConf.merge(OmegaConf.load(CONF / "model" / "sdxl.yaml"), values)
        del values["defaults"]
    if name != str(model):
        values = OmegaConf.merge(values, {"path": str(model), "vae": None, "vae_dtype": "fp32"})
    return ModelSpec(**values)


def unet_config(spec: ModelSpec) -> dict[str, Any]:
    """The configuration of a model's UNet, without fetching it where it is known beforehand."""
    from lorabench.models.shapes import CONFIGS as KNOWN

    local = MICRO if spec.path == "micro" else Path(spec.path)
    beside = (Path(spec.config) if local.is_file() else local) / "unet" / "config.json"
    if beside.is_file():
        return json.loads(beside.read_text())
    if spec.name in KNOWN and (local.is_file() or (not local.exists() and HUB_ID.fullmatch(spec.path))):
        return json.loads(KNOWN[spec.name].read_text())
    return model_files(spec).unet_config()
