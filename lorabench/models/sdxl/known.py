"""Configurations of SDXL models in the package. torch is not imported.

The UNets are those of stabilityai/stable-diffusion-xl-base-1.0, etri-vilab/koala-1b-llava-cap and
etri-vilab/koala-700m-llava-cap, with the keys that differ from diffusers' defaults; all have the same text encoders.
The number of transformer blocks in the first block has no effect, because that block has no attention.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lorabench.base import ASSETS
from lorabench.models.layer_map import LayerMap
from lorabench.models.sdxl.layers import TEXT_ENCODERS, layers_of

FOLDER = Path(__file__).parent / "configs"
UNETS = {
    "sdxl": FOLDER / "sdxl.json",
    "koala_1b": FOLDER / "koala_1b.json",
    "koala_700m": FOLDER / "koala_700m.json",
    "micro": ASSETS / "micro_sdxl" / "unet" / "config.json",
}


def unet_config(name: str) -> dict[str, Any]:
    """Return the configuration of a known UNet."""
    return json.loads(UNETS[name].read_text())


def known_layers(name: str) -> LayerMap:
    """Return the layers of a known model."""
    if name == "micro":
        return folder_layers(ASSETS / "micro_sdxl")
    encoders = {each: json.loads((FOLDER / f"{each}.json").read_text()) for each in TEXT_ENCODERS}
    return layers_of(unet_config(name), encoders)


def folder_layers(folder: Path) -> LayerMap:
    """Return the layers of the model whose configurations are in a diffusers folder."""
    unet, *encoders = (json.loads((folder / each / "config.json").read_text()) for each in ("unet", *TEXT_ENCODERS))
    return layers_of(unet, dict(zip(TEXT_ENCODERS, encoders, strict=True)))


def has_configs(folder: Path) -> bool:
    """Return whether a folder has the configurations that `folder_layers` reads."""
    return all((folder / each / "config.json").is_file() for each in ("unet", *TEXT_ENCODERS))
