"""The layers of SDXL's UNet and CLIP text encoders, from their configurations. torch is not imported.

The order is that of the forward pass. Depth is the resolution of a layer: 0 at the highest resolution with attention, 1
at the lowest. On SDXL the layers of down_blocks.1 and up_blocks.1 have depth 0; those of down_blocks.2, mid_block and
up_blocks.0 have depth 1. KOALA has one layer per block, and KOALA-700M no middle block.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorabench.base import UserError
from lorabench.models.clip import Widths, clip_layers
from lorabench.models.layer import Layer, within
from lorabench.models.layer_map import LayerMap

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
PROJECTED = ("text_encoder_2",)
PLAIN = ("DownBlock2D", "UpBlock2D", "UNetMidBlock2D")
CROSS_ATTENTION = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D", "UNetMidBlock2DCrossAttn")
ATTENTION = re.compile(r"\.(attn[12]|self_attn)\.")

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Block:
    """A block of a UNet.

    Args:
        path: Module path.
        short: Name in figures.
        width: Channels.
        resnets: Number of residual blocks.
        attentions: Number of attention modules.
        depth: Transformer blocks per attention module.
        level: Number of halvings of the latents before the block.
    """

    path: str
    short: str
    width: int
    resnets: int
    attentions: int
    depth: int
    level: int

    @property
    def modules(self) -> list[str]:
        """Return the paths of the attention modules."""
        return [f"{self.path}.attentions.{i}" for i in range(self.attentions)]

    @property
    def transformer_blocks(self) -> list[str]:
        """Return the paths of the transformer blocks."""
        return [f"{module}.transformer_blocks.{k}" for module in self.modules for k in range(self.depth)]


def layers_of(unet: Config, encoders: Mapping[str, Config]) -> LayerMap:
    """Return the layer map of a model of the SDXL family.

    Args:
        unet: Configuration of the UNet.
        encoders: Configuration of each text encoder by name.

    Raises:
        UserError: If the UNet has blocks that SDXL's family does not have.
    """
    blocks = blocks_of(unet)
    attentive = [block for block in blocks if block.attentions]
    if not attentive:
        raise UserError("the UNet has no attention layers to adapt; use model=micro or the folder of an SDXL model")
    levels = [block.level for block in attentive]
    layers = [Layer(name, *widths) for name, widths in embedding_layers(unet)]
    for block in blocks:
        depth = relative(block.level, min(levels), max(levels))
        layers += [Layer(name, *widths, depth=depth) for name, widths in block_layers(unet, block)]
    text = [Layer(name, *widths) for name, widths in text_layers(encoders)]
    inside = [layer.name for layer in layers if any(within(layer.name, block.path) for block in attentive)]
    attention = frozenset(layer.name for layer in (*layers, *text) if ATTENTION.search(layer.name))
    return LayerMap(
        {layer.name: layer for layer in layers},
        {layer.name: layer for layer in text},
        attention,
        {block.path: block.short for block in attentive},
        tuple(module for block in attentive for module in block.modules),
        tuple(path for block in attentive for path in block.transformer_blocks),
        {"script": attention, "all": frozenset(inside)},  # diffusers' script adapts the attention projections
        {layer.name: layer for layer in convolutions(unet, blocks, levels)},
    )


def convolutions(unet: Config, blocks: Sequence[Block], levels: Sequence[int]) -> Iterator[Layer]:
    """Yield the convolutions of a UNet, as layers of in x k x k inputs."""
    widths = unet["block_out_channels"]
    yield Layer("conv_in", 9 * unet.get("in_channels", 4), widths[0])
    yield Layer("conv_out", 9 * widths[0], unet.get("out_channels", 4))
    before = widths[0]  # width of the block before
    for block in blocks:
        side, depth = block.path.split("_")[0], relative(block.level, min(levels), max(levels))
        skipped = widths[max(block.level - 1, 0)]  # width of the skip connection to the last residual block
        for i in range(block.resnets):
            head, source = f"{block.path}.resnets.{i}", before if i == 0 else block.width
            if side == "up":
                source += skipped if i == block.resnets - 1 else block.width
            yield Layer(f"{head}.conv1", 9 * source, block.width, depth=depth)
            yield Layer(f"{head}.conv2", 9 * block.width, block.width, depth=depth)
            if source != block.width:
                yield Layer(f"{head}.conv_shortcut", source, block.width, depth=depth)
        last = block.level == (len(widths) - 1 if side == "down" else 0)
        if side != "mid" and not last:
            yield Layer(f"{block.path}.{side}samplers.0.conv", 9 * block.width, block.width, depth=depth)
        before = block.width


def blocks_of(unet: Config) -> list[Block]:
    """Return the blocks in the order of the forward pass."""
    downs, ups = unet["down_block_types"], unet["up_block_types"]
    middle = unet.get("mid_block_type", "UNetMidBlock2DCrossAttn")
    if unknown := {*downs, *ups, *filter(None, [middle])} - {*PLAIN, *CROSS_ATTENTION}:
        raise UserError(f"a UNet with {min(unknown)} is not of SDXL's family; use an SDXL or KOALA model")
    last, widths = len(downs) - 1, unet["block_out_channels"]
    counts = per_block(unet.get("layers_per_block", 2), len(downs))
    depths = per_block(unet.get("transformer_layers_per_block", 1), len(downs))
    up_depths = unet.get("reverse_transformer_layers_per_block") or depths[::-1]

    def block(path: str, short: str, kind: str, resnets: int, attentions: int, depth: int, level: int) -> Block:
        attentive = kind in CROSS_ATTENTION
        return Block(path, short, widths[level], resnets, attentions * attentive, depth * attentive, level)

    found = [
        block(f"down_blocks.{i}", f"down {i}", kind, counts[i], counts[i], depths[i], i) for i, kind in enumerate(downs)
    ]
    if middle:
        found.append(block("mid_block", "mid", middle, 2, 1, depths[last], last))
    for i, kind in enumerate(ups):
        count = counts[last - i] + 1
        found.append(block(f"up_blocks.{i}", f"up {i}", kind, count, count, up_depths[i], last - i))
    return found


def embedding_layers(unet: Config) -> Iterator[tuple[str, Widths]]:
    """Yield the layers that embed timestep, size and pooled prompt, with their widths."""
    first, width = unet["block_out_channels"][0], time_width(unet)
    yield "time_embedding.linear_1", (first, width)
    yield "time_embedding.linear_2", (width, width)
    if unet.get("addition_embed_type") == "text_time":
        yield "add_embedding.linear_1", (unet["projection_class_embeddings_input_dim"], width)
        yield "add_embedding.linear_2", (width, width)


def block_layers(unet: Config, block: Block) -> Iterator[tuple[str, Widths]]:
    """Yield the layers of a block with their widths: each residual block, then its attention module."""
    for i in range(block.resnets):
        yield f"{block.path}.resnets.{i}.time_emb_proj", (time_width(unet), block.width)
        if i < block.attentions:
            yield from attention_layers(unet, block, block.modules[i])


def attention_layers(unet: Config, block: Block, path: str) -> Iterator[tuple[str, Widths]]:
    """Yield the layers of an attention module with their widths."""
    width, context = block.width, unet["cross_attention_dim"]
    linear = unet.get("use_linear_projection", False)
    if linear:
        yield f"{path}.proj_in", (width, width)
    for k in range(block.depth):
        for name, source in (("attn1", width), ("attn2", context)):
            head = f"{path}.transformer_blocks.{k}.{name}"
            yield f"{head}.to_q", (width, width)
            yield f"{head}.to_k", (source, width)
            yield f"{head}.to_v", (source, width)
            yield f"{head}.to_out.0", (width, width)
        yield f"{path}.transformer_blocks.{k}.ff.net.0.proj", (width, 8 * width)  # GEGLU: value and gate, 4 each
        yield f"{path}.transformer_blocks.{k}.ff.net.2", (4 * width, width)
    if linear:
        yield f"{path}.proj_out", (width, width)


def text_layers(encoders: Mapping[str, Config]) -> Iterator[tuple[str, Widths]]:
    """Yield the layers of both text encoders."""
    for encoder, config in encoders.items():
        yield from clip_layers(encoder, config, encoder in PROJECTED)


def per_block(value: int | list[int], count: int) -> list[int]:
    """Return a list with one value per block for a setting that is one number for all blocks or a list."""
    return [value] * count if isinstance(value, int) else list(value)


def time_width(unet: Config) -> int:
    """Return the width of the time embedding."""
    return unet.get("time_embedding_dim") or 4 * unet["block_out_channels"][0]


def relative(level: int, top: int, bottom: int) -> float:
    """Return the depth of a block: 0 at the top level with attention, 1 at the bottom, 0.5 if there is only one.

    >>> [relative(level, 1, 2) for level in range(3)]
    [0.0, 0.0, 1.0]
    """
    return 0.5 if top == bottom else min(max((level - top) / (bottom - top), 0.0), 1.0)
