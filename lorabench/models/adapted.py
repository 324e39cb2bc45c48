"""The layers that given LoRAs adapt, as a method sees them, on a UNet with or without weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lorabench.data.pairs import Role
from lorabench.lora.adapter import LoRA
from lorabench.lora.layer import fitting_layer, union
from lorabench.models.layer import Layer
from lorabench.models.layers import depths


def live_layers(unet: nn.Module, loras: Sequence[LoRA], roles: Sequence[Role]) -> dict[str, Layer]:
    """The adapted layers of the UNet by name; UserError where a LoRA does not fit it."""
    names = union(loras)
    depth = depths(unet, names)
    layers = {name: fitting_layer(unet, name, [lora[name] for lora in loras if name in lora]) for name in names}
    ranks = {name: tuple(lora[name].rank if name in lora else 0 for lora in loras) for name in names}
    return {
        name: Layer(name, layer.in_features, layer.out_features, ranks[name], tuple(roles), depth[name])
        for name, layer in layers.items()
    }


def text_layers(loras: Sequence[LoRA], roles: Sequence[Role]) -> dict[str, Layer]:
    """The adapted layers of the text encoders by name; they lie at no resolution, so their depth is a half."""
    present = {name: factors for lora in loras for name, factors in lora.text.items()}
    ranks = {name: tuple(lora.text[name].rank if name in lora.text else 0 for lora in loras) for name in present}
    return {
        name: Layer(name, factors.down.shape[-1], factors.up.shape[-2], ranks[name], tuple(roles), 0.5)
        for name, factors in present.items()
    }
