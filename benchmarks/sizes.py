"""Inputs of the benchmarks: models of three sizes, random LoRAs for their attention layers, and a pair of plain images.

micro   the packaged model, 64 px
slice   SDXL's widths, heads and text width, but one transformer block per layer instead of 2 and 10; random weights
sdxl    SDXL's configuration, random weights

The last two are only UNets, because merge steps use neither text encoders nor the autoencoder.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image

from lorabench.base import seed_of
from lorabench.data.concepts import Concept, Reference
from lorabench.data.pairs import Pair
from lorabench.data.pairs import pair as make_pair
from lorabench.data.scenes import Prompts
from lorabench.lora.adapter import Factors, LoRA
from lorabench.models.files import model_folder
from lorabench.models.known import denoiser_config
from lorabench.models.reading import DTYPES
from lorabench.models.sdxl.denoiser_only import DenoiserOnly
from lorabench.models.sdxl.model import SDXL

RANKS = {"micro": 16, "slice": 64, "sdxl": 64}
DIFFERENCES: dict[str, dict[str, Any]] = {
    "slice": {"transformer_layers_per_block": [1, 1, 1], "sample_size": 32},
    "sdxl": {},
}


def build(size: str, device: str, dtype: torch.dtype, latents: int | None = None) -> SDXL:
    """Build a model of one of the sizes; `latents` overrides the edge of the latents."""
    if size == "micro":
        names = {known: name for name, known in DTYPES.items()}
        return SDXL.load(replace(model_folder("micro"), dtype=names[dtype]), device)
    config = denoiser_config("sdxl") | DIFFERENCES[size]
    if latents:
        config["sample_size"] = latents
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # build in this precision: an fp32 copy would need twice the memory
    try:
        with torch.device(device):
            unet = UNet2DConditionModel.from_config(config)
    finally:
        torch.set_default_dtype(before)
    return DenoiserOnly(unet)  # pyright: ignore[reportArgumentType]


def random_lora(model: SDXL, rank: int, name: str) -> LoRA:
    """Return random updates with about a sixth of the norm of the weights."""
    factors = {}
    for layer, module in model.layers.trained().items():
        draw = torch.Generator().manual_seed(seed_of(name, layer))
        down = torch.randn(rank, module.in_features, generator=draw) / module.in_features**0.5
        factors[layer] = Factors(down, torch.randn(module.out_features, rank, generator=draw) * 0.1 / rank**0.5)
    return LoRA(factors)


def plain_pair(name: str = "0") -> Pair:
    """Return a subject and a style with one image each, in a single color."""
    prompts = Prompts()
    content = concept(f"mug_{name}", "content", "mug", prompts.content("mug"))
    style = concept(f"paint_{name}", "style", "paint style", prompts.style("boat"))
    return make_pair((content,), (style,), prompts)


def concept(name: str, role: Any, word: str, prompt: str) -> Concept:
    """Return a concept with one image in a single color."""
    color = tuple(seed_of(name, channel) % 256 for channel in "rgb")
    image = Reference(word, prompt, f"{name}-{color}", partial(Image.new, "RGB", (64, 64), color))
    return Concept(name, role, word, (image,), (image,))
