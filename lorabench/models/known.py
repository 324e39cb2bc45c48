"""Configurations of models, known without files of theirs. Imports no torch.

The denoisers are those of stabilityai/stable-diffusion-xl-base-1.0, etri-vilab/koala-1b-llava-cap,
etri-vilab/koala-700m-llava-cap, stabilityai/stable-diffusion-3-medium-diffusers,
stabilityai/stable-diffusion-3.5-medium, stabilityai/stable-diffusion-3.5-large, black-forest-labs/FLUX.1-dev and
black-forest-labs/FLUX.1-schnell, with the keys that differ from diffusers' defaults, and of the micro models. All but
the micro models have CLIP text encoders of the same sizes. The number of transformer blocks in the first block of SDXL
has no effect, because that block has no attention.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorabench.models.families import FLUX, SD3, SDXL, Family, family_of
from lorabench.models.files import MICRO, TRAINED
from lorabench.models.flux.layers import layers_of as flux_layers
from lorabench.models.layer_map import LayerMap
from lorabench.models.sd3.layers import layers_of as sd3_layers
from lorabench.models.sdxl.layers import layers_of as sdxl_layers

FOLDER = Path(__file__).parent / "configs"
KNOWN: dict[str, Family] = {
    "sdxl": SDXL,
    "koala_1b": SDXL,
    "koala_700m": SDXL,
    "micro": SDXL,
    "micro_sd3": SD3,
    "sd3": SD3,
    "sd35_medium": SD3,
    "sd35_large": SD3,
    "flux": FLUX,
    "flux_schnell": FLUX,
}
LAYERS = {"sdxl": sdxl_layers, "sd3": sd3_layers, "flux": flux_layers}


def denoiser_config(name: str) -> dict[str, Any]:
    """Return the configuration of the denoiser of a known model."""
    return read(MICRO / "unet" / "config.json" if name == "micro" else FOLDER / f"{name}.json")


def known_layers(name: str) -> LayerMap:
    """Return the layers of a known model."""
    if name == "micro":
        return folder_layers(MICRO)
    encoders = {each: encoder_config(name, each) for each in KNOWN[name].adapted}
    return layers_of(KNOWN[name], denoiser_config(name), encoders)


def encoder_config(name: str, encoder: str) -> dict[str, Any]:
    """Return the configuration of a CLIP text encoder of a known model. All micro models have the same."""
    return read(MICRO / encoder / "config.json" if name in TRAINED else FOLDER / f"{encoder}.json")


def folder_layers(folder: Path) -> LayerMap:
    """Return the layers of the model whose configurations are in a diffusers folder."""
    family = family_of(folder)
    denoiser, *encoders = (read(folder / each / "config.json") for each in (family.denoiser, *family.adapted))
    return layers_of(family, denoiser, dict(zip(family.adapted, encoders, strict=True)))


def layers_of(family: Family, denoiser: Mapping[str, Any], encoders: Mapping[str, Mapping[str, Any]]) -> LayerMap:
    """Return the layers of a model from the configurations of its denoiser and its CLIP text encoders."""
    return LAYERS[family.name](denoiser, encoders)


def has_configs(folder: Path) -> bool:
    """Return True if a folder has the configurations that `folder_layers` reads."""
    if not (folder / "model_index.json").is_file():
        return False
    family = family_of(folder)
    return all((folder / each / "config.json").is_file() for each in (family.denoiser, *family.adapted))


def read(file: Path) -> dict[str, Any]:
    """Return the content of a JSON file."""
    return json.loads(file.read_text(encoding="utf-8"))
