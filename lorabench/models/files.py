"""The files of a model: a diffusers folder, a single-file checkpoint, or a repository of the hub.

They are found and checked by names and headers, before heavy packages are imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lorabench.base import ASSETS, CACHE, CONF, UserError
from lorabench.config.schemas import ModelSpec
from lorabench.models.families import HINT, Family, family_of
from lorabench.models.hub import HUB_ID, fetch
from lorabench.models.pipeline_files import (
    check_configs,
    check_resolution,
    check_single_file,
    used_files,
    used_part,
    variant_of,
    weight_patterns,
)

MICRO = ASSETS / "micro_sdxl"
# Models that may be in the package, or else where `python -m pretraining build` writes them.
TRAINED = {"micro_sd3": CACHE / "micro_sd3" / "pipeline"}
CONFIGS = ("*.json", "tokenizer*/*")


@dataclass(frozen=True)
class ModelFiles:
    """A model on this machine. The fields without description are those of `ModelSpec`.

    Args:
        path: Diffusers folder or single file.
        config: Folder of its configurations and tokenizers; the folder itself if `path` is one.
        vae: Folder or file of an autoencoder that replaces its own.
        variant: Variant in the names of the weights ("fp16"), if the folder has it.
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
    true_guidance: bool = False

    @property
    def family(self) -> Family:
        """Return the family of the model."""
        return family_of(self.config)

    def numbers(self) -> dict[str, Any]:
        """Return the settings that change results. Attention, offload and checkpointing change only the cost."""
        neutral = ModelFiles(self.path, self.config)
        names = ("variant", "dtype", "vae_dtype", "resolution", "true_guidance")
        return {name: getattr(self, name) for name in names if getattr(self, name) != getattr(neutral, name)}

    def sources(self) -> list[Path]:
        """Return the files that loading the model reads, without other variants in its folder."""
        if self.path.is_file():
            found = [self.path, *used_files(self.config, None, weights=False)]
        else:
            found = used_files(self.path, self.variant)
        if self.vae is None:
            return found
        return [*found, self.vae] if self.vae.is_file() else [*found, *used_part(self.vae, None)]


def model_files(spec: ModelSpec) -> ModelFiles:
    """Find the model of a configuration, and download it from the hub if needed.

    Raises:
        UserError: If it is not a supported model.
    """
    path = find_model(spec.path, [*CONFIGS, *weight_patterns(spec.variant)])
    if path.is_file():
        family = check_single_file(path)
        config = find_model(spec.config, CONFIGS)
        if family_of(config) != family:
            raise UserError(
                f"{path} is {family.title} and model.config={spec.config} is {family_of(config).title}; use "
                f"model={family.name}"
            )
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
        true_guidance=spec.true_guidance,
    )


def model_folder(path: str | Path) -> ModelFiles:
    """Return the files of a model in fp32, given "micro", "micro_sd3" or a diffusers folder."""
    folder = find_model(str(path), ())
    check_configs(folder)
    return ModelFiles(folder, folder)


def find_model(source: str, patterns: Sequence[str]) -> Path:
    """Return the path of "micro" or "micro_sd3", of a folder or file, or of a repository of the hub.

    Args:
        source: Setting `model.path` or `model.config`.
        patterns: Files of a repository to download.
    """
    path = embedded(source) or Path(source)
    if path.exists():
        return path
    if HUB_ID.fullmatch(source):
        return fetch(source, patterns)
    raise UserError(f"{source} is not a diffusers model folder or a checkpoint; {HINT}")


def embedded(source: str) -> Path | None:
    """Return the folder of "micro" or "micro_sd3"; None for other models.

    Raises:
        UserError: If the model is not in the package and has not been trained.
    """
    if source == "micro":
        return MICRO
    if source not in TRAINED:
        return None
    for folder in (ASSETS / source / TRAINED[source].name, TRAINED[source]):
        if (folder / "model_index.json").is_file():
            return folder
    raise UserError(
        f"model={source} has no weights; train them with `python -m pretraining build --model {source}` in a checkout, "
        "or use model.path=<folder of its pipeline>"
    )


def find_vae(source: str) -> Path:
    """Return the folder or file of an autoencoder.

    Raises:
        UserError: If there is none.
    """
    path = Path(source)
    if not path.exists() and HUB_ID.fullmatch(source):
        path = fetch(source, ("config.json", "diffusion_pytorch_model.safetensors"))
    if path.is_file() and path.suffix == ".safetensors":
        return path
    if not (path / "config.json").is_file():
        raise UserError(f"model.vae={source} must be an autoencoder; use a folder with config.json or a hub id")
    return path


def preset(model: str | Path) -> ModelSpec:
    """Return conf/model/<name>.yaml; for a folder, file or hub id, the settings of "sdxl" with the model's own VAE."""
    name = str(model) if (CONF / "model" / f"{model}.yaml").is_file() else "sdxl"
    values: Any = preset_values(name)
    if name != str(model):
        values = OmegaConf.merge(values, {"path": str(model), "vae": None, "vae_dtype": "fp32"})
    return ModelSpec(**values)


def preset_values(name: str) -> Any:
    """Return the values of conf/model/<name>.yaml, over those of the presets in its `defaults`."""
    values: Any = OmegaConf.load(CONF / "model" / f"{name}.yaml")
    bases = [base for base in values.pop("defaults") if base != "_self_" and not base.startswith("schema/")]
    return OmegaConf.merge(*map(preset_values, bases), values)
