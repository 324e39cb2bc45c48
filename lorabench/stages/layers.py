"""Which layers of a text encoder a LoRA is trained on, and the factors that any LoRA starts from."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn

from lorabench.lora import Factors, LoRA
from lorabench.seeds import seed_of

TEXT_TARGET = re.compile(r".*\.self_attn\.(q|k|v|out)_proj")


def text_layers(encoder: nn.Module) -> dict[str, nn.Linear]:
    """The attention projections of a CLIP text encoder, what diffusers' scripts adapt."""
    return {
        name: layer
        for name, layer in encoder.named_modules()
        if TEXT_TARGET.fullmatch(name) and isinstance(layer, nn.Linear)
    }


def initial(layers: Mapping[str, nn.Linear], rank: int, seed: int) -> LoRA:
    """Where training starts: `down` normal with standard deviation 1 / rank, `up` zero (peft's "gaussian")."""
    factors = {}
    for site, layer in layers.items():
        draw = torch.Generator().manual_seed(seed_of(seed, site))
        down = torch.randn(rank, layer.in_features, generator=draw) / rank
        factors[site] = Factors(down, torch.zeros(layer.out_features, rank))
    return LoRA(factors)
