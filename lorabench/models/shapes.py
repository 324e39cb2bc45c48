"""Models without weights: layer maps, which do not need torch, and models on the meta device, which need no memory."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabench.base import UserError
from lorabench.config.choices import unknown
from lorabench.config.schemas import ModelSpec
from lorabench.models.families import FLUX, Family, family_of
from lorabench.models.files import ModelFiles, embedded, model_files
from lorabench.models.hub import HUB_ID
from lorabench.models.known import KNOWN as FAMILY_OF
from lorabench.models.known import denoiser_config, folder_layers, has_configs, known_layers, read
from lorabench.models.layer_map import LayerMap

if TYPE_CHECKING:
    import torch

    from lorabench.data.concepts import Role
    from lorabench.lora.adapter import Adapter
    from lorabench.models.model import DiffusionModel

DENOISERS = {"sdxl": "DenoiserOnly", "sd3": "SD3DenoiserOnly", "flux": "FluxDenoiserOnly"}  # classes by family
KNOWN = tuple(FAMILY_OF)  # names of models whose configurations are packaged


def layer_map(source: ModelFiles | ModelSpec | str | Sequence[Adapter]) -> LayerMap:
    """Return the layers of a model, including text encoders.

    Args:
        source: Files of a model, its configuration, the name of a known model, or LoRAs. The configuration of a known
            model is not downloaded. For LoRAs, the result is the first known model that all of them fit.

    Raises:
        UserError: If there is no such model, or no known model fits.
    """
    if isinstance(source, ModelFiles):
        return folder_layers(source.config)
    if isinstance(source, ModelSpec):
        return spec_layers(source)
    if isinstance(source, str):
        if source not in KNOWN:
            raise UserError(unknown("model", source, KNOWN))
        return known_layers(source)
    return known_layers(model_of(source))


def family_and_guidance(source: ModelFiles | ModelSpec) -> tuple[Family, str]:
    """Return the family of a model and its kind of guidance: "cfg", "embedded" or "none" (see `DiffusionModel`).

    Args:
        source: Files of a model, or its configuration. The configuration of a known model is not downloaded.
    """
    found = source.config if isinstance(source, ModelFiles) else configs_of(source)
    family = FAMILY_OF[found] if isinstance(found, str) else family_of(found)
    if family != FLUX or source.true_guidance:
        return family, "cfg"
    denoiser = denoiser_config(found) if isinstance(found, str) else read(found / family.denoiser / "config.json")
    return family, "embedded" if denoiser["guidance_embeds"] else "none"


def spec_layers(spec: ModelSpec) -> LayerMap:
    """Return the layers of a configured model, without a download if possible."""
    found = configs_of(spec)
    return known_layers(found) if isinstance(found, str) else folder_layers(found)


def configs_of(spec: ModelSpec) -> str | Path:
    """Return the folder of a model's configurations, or the name of a known model, without a download if possible."""
    local = embedded(spec.path) or Path(spec.path)
    folder = Path(spec.config) if local.is_file() else local
    if has_configs(folder):
        return folder
    if spec.name in KNOWN and (local.is_file() or (not local.exists() and HUB_ID.fullmatch(spec.path))):
        return spec.name
    return model_files(spec).config


def model_of(loras: Sequence[Adapter]) -> str:
    """Return the name of the first known model that LoRAs fit.

    Raises:
        UserError: If none fits.
    """
    if names := models_of(loras):
        return names[0]
    raise UserError(f"the LoRAs fit none of the known models ({', '.join(KNOWN)}); use model.path=<their model>")


def models_of(loras: Sequence[Adapter]) -> list[str]:
    """Return the names of the known models that all LoRAs fit."""
    roles: list[Role] = ["content"] * len(loras)

    def fits(name: str) -> bool:
        try:
            known_layers(name).adapted(loras, roles)
        except UserError:
            return False
        return True

    return [name for name in KNOWN if fits(name)]


def empty_model(name: str, dtype: torch.dtype | None = None, checkpointing: bool = False) -> DiffusionModel:
    """Return a known model on torch's meta device, without text encoders and autoencoder.

    Args:
        name: Name of a known model.
        dtype: Type of its weights; fp32 if None.
        checkpointing: Use gradient checkpointing.
    """
    import torch

    family = FAMILY_OF[name].name
    kind: Any = getattr(import_module(f"lorabench.models.{family}.denoiser_only"), DENOISERS[family])
    with torch.device("meta"):
        denoiser = kind.network.from_config(denoiser_config(name))
    # diffusers' own `to` warns of every cast
    return kind(torch.nn.Module.to(denoiser, dtype or torch.float32), checkpointing)


def sdxl_names() -> list[str]:
    """Return the names of the known models of SDXL's family."""
    return [name for name, family in FAMILY_OF.items() if family.name == "sdxl"]
