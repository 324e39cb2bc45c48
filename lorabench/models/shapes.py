"""UNets without their weights: what can be counted needs a configuration and no memory.

The configurations are those of stabilityai/stable-diffusion-xl-base-1.0, etri-vilab/koala-1b-llava-cap and
etri-vilab/koala-700m-llava-cap, with the keys that differ from diffusers' defaults. The number of transformer layers of
the first block is in all of them without effect: that block has no attention. KOALA-700M has no middle block.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabench.base import ASSETS, UserError
from lorabench.config.choices import unknown
from lorabench.data.pairs import ROLES, Role
from lorabench.models.layer import Layer

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from torch import nn

FOLDER = Path(__file__).parent / "configs"
Blocks = Mapping[Role, Sequence[str]]
CONFIGS = {
    "sdxl": FOLDER / "sdxl.json",
    "koala_1b": FOLDER / "koala_1b.json",
    "koala_700m": FOLDER / "koala_700m.json",
    "micro": ASSETS / "micro_sdxl" / "unet" / "config.json",
}


def empty_unet(name: str) -> UNet2DConditionModel:
    """The UNet of a model on torch's meta device.  UserError for a model that is not known."""
    if name not in CONFIGS:
        raise UserError(unknown("task.ranks", name, CONFIGS))

    return without_weights(json.loads(CONFIGS[name].read_text()))


def without_weights(config: Mapping[str, Any]) -> UNet2DConditionModel:
    """A UNet of a configuration on torch's meta device."""
    import torch
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel.from_config(dict(config))  # pyright: ignore[reportReturnType]


def adapted(
    unet: nn.Module, rank: int, roles: tuple[Role, ...] = ROLES, blocks: Blocks | None = None
) -> dict[str, Layer]:
    """The attention layers of a UNet as a method sees them, with a LoRA of this rank for each role.

    blocks: by role, the modules that its LoRAs are trained on, where that is not all of the UNet.
    """
    from lorabench.models.layers import attention_layers, depths

    own = [attention_layers(unet, (blocks or {}).get(role, ())) for role in roles]
    layers = {name: layer for name, layer in attention_layers(unet).items() if any(name in each for each in own)}
    depth = depths(unet, list(layers))
    return {
        name: Layer(
            name,
            layer.in_features,
            layer.out_features,
            tuple(rank * (name in each) for each in own),
            roles,
            depth[name],
        )
        for name, layer in layers.items()
    }


def parameters(unet: UNet2DConditionModel) -> int:
    return sum(parameter.numel() for parameter in unet.parameters())
