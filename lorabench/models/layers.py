"""Which layers of a UNet are adapted, and how deep they lie, read from the live UNet."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from lorabench.base import UserError
from lorabench.models.layer import within

TARGET = re.compile(r".*\.attn[12]\.(to_q|to_k|to_v|to_out\.0)")


def attention_layers(unet: nn.Module, blocks: Sequence[str] = ()) -> dict[str, nn.Linear]:
    """The projections of self- and cross-attention, what DreamBooth-LoRA, ZipLoRA and DuoLoRA adapt (560 on SDXL).

    blocks: only those within one of these modules.  UserError for a module that holds none, naming those that do.
    """
    found = {
        name: module
        for name, module in unet.named_modules()
        if TARGET.fullmatch(name) and isinstance(module, nn.Linear)
    }
    if not found:
        raise UserError("the UNet has no attention layer to adapt; type model=micro or give an SDXL folder")
    for block in blocks:
        if not any(within(layer, block) for layer in found):
            there = sorted({layer.partition(".transformer_blocks")[0] for layer in found})
            raise UserError(f"lora.blocks={block} has no layer to adapt; this UNet has {', '.join(there)}")
    return {
        layer: module for layer, module in found.items() if not blocks or any(within(layer, block) for block in blocks)
    }


def halvings(unet: nn.Module) -> dict[str, int]:
    """How often the latent is halved before each block: {"down_blocks.1": 1, "mid_block": 2, ...}.

    KOALA-700M has no middle block.
    """
    level, levels = 0, {}
    for index, block in enumerate(unet.get_submodule("down_blocks").children()):
        levels[f"down_blocks.{index}"] = level
        level += block.downsamplers is not None
    if getattr(unet, "mid_block", None) is not None:
        levels["mid_block"] = level
    for index, block in enumerate(unet.get_submodule("up_blocks").children()):
        levels[f"up_blocks.{index}"] = level
        level -= block.upsamplers is not None
    return levels


def depths(unet: nn.Module, layers: list[str]) -> dict[str, float]:
    """Depth of each layer: 0 at the highest resolution with attention, 1 at the lowest, 0.5 where there is only one,
    and
    for what lies in no block (embeddings of time and size).

    On SDXL down_blocks.1 and up_blocks.1 are 0; down_blocks.2, mid_block and up_blocks.0 are 1.
    """
    levels = halvings(unet)

    def level(layer: str) -> int | None:
        return next((level for block, level in levels.items() if layer.startswith(f"{block}.")), None)

    attention = [level(name) for name, _ in unet.named_modules() if TARGET.fullmatch(name)]  # adapted or not
    found = [each for each in attention if each is not None]
    top, bottom = min(found), max(found)

    def depth(at: int | None) -> float:
        return 0.5 if at is None or bottom == top else (at - top) / (bottom - top)

    return {layer: depth(level(layer)) for layer in layers}
