"""Names of the layers of SD3 and FLUX.1 in LoRA files, as module paths of diffusers' transformers.

Files of kohya's and other trainers keep the names of the original code (BFL's for FLUX.1, Stability AI's for SD3). In
that code one layer computes the queries, keys and values of a block (`qkv`), and in FLUX.1's single blocks the input of
the feed-forward network as well (`linear1`). diffusers has a layer for each. Such a layer is split: all parts have the
same `down`, and each has its rows of `up`. kohya's `split_qkv` trains a LoRA for each part and saves them as one, whose
`up` is zero outside of blocks on the diagonal; a part then has only the ranks that are not zero in its rows. So methods
that read factors get the same layers from every convention.

x-flux keeps factors in attention processors: `qkv_lora1` and `proj_lora1` of the image, `qkv_lora2` and `proj_lora2` of
the text, and `qkv_lora` and `proj_lora` in single blocks, which `names.split` ends before `_lora`.

The original modulation of the last layer lists shift before scale, diffusers' lists scale before shift, so the two
halves are swapped. So are those of the text stream in SD3's last block, which is the only one with two chunks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lorabench.lora.factors import Factors, Shape
from lorabench.lora.files.names import TRANSFORMER_ROOTS

FLUX_ONLY = ("single_transformer_blocks.", "x_embedder", "time_text_embed.guidance_embedder.")
FLUX_WIDTH = 3072  # of all FLUX.1 models; SD3 has 1536 or 2432


@dataclass(frozen=True)
class Piece:
    """A layer that is a part of a fused one.

    Args:
        path: Module path in diffusers' transformer.
        start: First row of `up`, in units of the narrowest part.
        stop: Row after the last one, in the same units.
        total: Units of all parts.
        swapped: The halves of the rows are in the other order: "yes", "no", or "pair" if there are no other chunks.
    """

    path: str
    start: int = 0
    stop: int = 1
    total: int = 1
    swapped: Literal["yes", "no", "pair"] = "no"

    @property
    def is_whole(self) -> bool:
        """Return True if the layer is the same in both conventions."""
        return self.total == 1 and self.swapped == "no"

    @property
    def units(self) -> int:
        """Return the width of the part, in units of the narrowest one."""
        return self.stop - self.start

    def rows(self, outputs: int) -> slice:
        """Return the rows of a fused layer with so many outputs."""
        unit = outputs // self.total
        return slice(self.start * unit, self.stop * unit)

    def used(self, up: Tensor) -> Tensor | None:
        """Return the ranks that are not zero in the rows of this layer; None for all, or if all rows are zero.

        No rank is left if only other parts of the fused layer are adapted.

        Args:
            up: Factor of the fused layer [outputs, rank].
        """
        own = up[self.rows(len(up))].any(dim=0).nonzero().flatten()
        return own if len(own) < up.shape[1] and up.any() else None

    def of(self, fused: Factors, used: Tensor | None) -> Factors:
        """Return the factors of this layer.

        Args:
            fused: Factors of the fused layer.
            used: Ranks to keep, see `used`.
        """
        down, up = fused.down, fused.up[self.rows(len(fused.up))]
        if self.swapped == "yes" or (self.swapped == "pair" and len(up) == 2 * down.shape[1]):
            up = torch.cat(up.chunk(2)[::-1])
        return Factors(down, up, fused.scale) if used is None else Factors(down[used], up[:, used], fused.scale)


def fused(paths: Sequence[str], units: Sequence[int]) -> list[Piece]:
    """Return the parts of a fused layer, whose widths have the ratio of `units`."""
    stops = [sum(units[: i + 1]) for i in range(len(units))]
    return [Piece(path, stop - unit, stop, stops[-1]) for path, unit, stop in zip(paths, units, stops, strict=True)]


IMAGE, IMAGE_2, SINGLE = (
    tuple(f"{block}.{name}" for name in ("to_q", "to_k", "to_v"))
    for block in ("transformer_blocks.{}.attn", "transformer_blocks.{}.attn2", "single_transformer_blocks.{}.attn")
)
TEXT = tuple(f"transformer_blocks.{{}}.attn.add_{name}_proj" for name in "qkv")
# Original names with underscores for dots, and the layers they hold: "{}" is the number of the block.
FUSED: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "double_blocks_{}_img_attn_qkv": (IMAGE, (1, 1, 1)),
    "double_blocks_{}_txt_attn_qkv": (TEXT, (1, 1, 1)),
    "single_blocks_{}_linear1": ((*SINGLE, "single_transformer_blocks.{}.proj_mlp"), (1, 1, 1, 4)),
    "double_blocks_{}_processor_qkv_lora1": (IMAGE, (1, 1, 1)),
    "double_blocks_{}_processor_qkv_lora2": (TEXT, (1, 1, 1)),
    "single_blocks_{}_processor_qkv": (SINGLE, (1, 1, 1)),
    "joint_blocks_{}_x_block_attn_qkv": (IMAGE, (1, 1, 1)),
    "joint_blocks_{}_x_block_attn2_qkv": (IMAGE_2, (1, 1, 1)),
    "joint_blocks_{}_context_block_attn_qkv": (TEXT, (1, 1, 1)),
}
PLAIN = {
    "double_blocks_{}_img_attn_proj": "transformer_blocks.{}.attn.to_out.0",
    "double_blocks_{}_txt_attn_proj": "transformer_blocks.{}.attn.to_add_out",
    "double_blocks_{}_img_mlp_0": "transformer_blocks.{}.ff.net.0.proj",
    "double_blocks_{}_img_mlp_2": "transformer_blocks.{}.ff.net.2",
    "double_blocks_{}_txt_mlp_0": "transformer_blocks.{}.ff_context.net.0.proj",
    "double_blocks_{}_txt_mlp_2": "transformer_blocks.{}.ff_context.net.2",
    "double_blocks_{}_img_mod_lin": "transformer_blocks.{}.norm1.linear",
    "double_blocks_{}_txt_mod_lin": "transformer_blocks.{}.norm1_context.linear",
    "single_blocks_{}_linear2": "single_transformer_blocks.{}.proj_out",
    "single_blocks_{}_modulation_lin": "single_transformer_blocks.{}.norm.linear",
    "double_blocks_{}_processor_proj_lora1": "transformer_blocks.{}.attn.to_out.0",
    "double_blocks_{}_processor_proj_lora2": "transformer_blocks.{}.attn.to_add_out",
    "single_blocks_{}_processor_proj": "single_transformer_blocks.{}.proj_out",
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "context_embedder": "context_embedder",
    "time_in_in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in_out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in_in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in_out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in_in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in_out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer_linear": "proj_out",
    "joint_blocks_{}_x_block_attn_proj": "transformer_blocks.{}.attn.to_out.0",
    "joint_blocks_{}_x_block_attn2_proj": "transformer_blocks.{}.attn2.to_out.0",
    "joint_blocks_{}_context_block_attn_proj": "transformer_blocks.{}.attn.to_add_out",
    "joint_blocks_{}_x_block_mlp_fc1": "transformer_blocks.{}.ff.net.0.proj",
    "joint_blocks_{}_x_block_mlp_fc2": "transformer_blocks.{}.ff.net.2",
    "joint_blocks_{}_context_block_mlp_fc1": "transformer_blocks.{}.ff_context.net.0.proj",
    "joint_blocks_{}_context_block_mlp_fc2": "transformer_blocks.{}.ff_context.net.2",
    "joint_blocks_{}_x_block_adaLN_modulation_1": "transformer_blocks.{}.norm1.linear",
    "t_embedder_mlp_0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder_mlp_2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder_mlp_0": "time_text_embed.text_embedder.linear_1",
    "y_embedder_mlp_2": "time_text_embed.text_embedder.linear_2",
}
SPLIT_QKV = re.compile(r"(.+_(?:attn2?)_)([qkv])")  # kohya's split_qkv: img_attn_q
SWAPPED: dict[str, tuple[str, Literal["yes", "pair"]]] = {
    "final_layer_adaLN_modulation_1": ("norm_out.linear", "yes"),
    "joint_blocks_{}_context_block_adaLN_modulation_1": ("transformer_blocks.{}.norm1_context.linear", "pair"),
}
PREFIX = re.compile(
    r"^(lora_unet_|lora_transformer_|lycoris_|(base_model\.model\.)?((transformer|diffusion_model|unet)\.)?)"
)
NUMBER = re.compile(r"_(\d+)_")
# Parts of diffusers' paths, the longest first, to find the dots of an underscored name again.
PARTS = re.compile(
    r"single_transformer_blocks|transformer_blocks|time_text_embed|timestep_embedder|text_embedder|guidance_embedder"
    r"|context_embedder|x_embedder|norm1_context|norm_out|norm1|norm|ff_context|ff|net|attn2|attn|add_[qkv]_proj"
    r"|to_add_out|to_out|to_[qkv]|proj_mlp|proj_out|proj|linear_[12]|linear|\d+"
)


def layers(stem: str) -> dict[str, Piece]:
    """Return the layers that a key of a file holds, by name as an adapter has it; none for another model's key."""
    return {f"unet.{piece.path}": piece for piece in pieces(stem) or ()}


def pieces(stem: str) -> list[Piece] | None:
    """Return the layers that a key of a file holds, without its ending; None if it is not of SD3 or FLUX.1.

    Args:
        stem: "lora_unet_double_blocks_0_img_attn_qkv", "transformer.single_transformer_blocks.3.proj_out", ...
    """
    name = PREFIX.sub("", stem)
    if name in TRANSFORMER_ROOTS or name.startswith(tuple(f"{root}." for root in TRANSFORMER_ROOTS)):
        return [Piece(f"{name}.0" if name.endswith(".to_out") else name)]
    flat = name.replace(".", "_")
    if path := dotted(flat):
        return [Piece(path)]
    number = NUMBER.search(flat)
    index = number[1] if number else ""
    general = NUMBER.sub("_{}_", flat, count=1) if number else flat
    if general in SWAPPED:
        path, swapped = SWAPPED[general]
        return [Piece(path.format(index), swapped=swapped)]
    if general in PLAIN:
        return [Piece(PLAIN[general].format(index))]
    if general in FUSED:
        paths, units = FUSED[general]
        return fused([path.format(index) for path in paths], units)
    part = SPLIT_QKV.fullmatch(general)
    if part and f"{part[1]}qkv" in FUSED:
        return [Piece(FUSED[f"{part[1]}qkv"][0]["qkv".index(part[2])].format(index))]
    return None


def is_flux(shapes: Mapping[str, Shape]) -> bool:
    """Return whether layers of a transformer show that it is FLUX.1: SD3 has no single blocks and is narrower.

    Args:
        shapes: Rank, inputs and outputs by layer of the denoiser.
    """
    return any(
        path.startswith(FLUX_ONLY)
        or (FLUX_WIDTH in (inputs, outputs) and inputs * 2 != FLUX_WIDTH)  # SD3 medium modulates 1536 by 3072 numbers
        for path, (_, inputs, outputs) in shapes.items()
    )


def dotted(name: str) -> str | None:
    """Return the module path of an underscored name of diffusers; None if it is not one."""
    if not any(name == root or name.startswith(f"{root}_") for root in TRANSFORMER_ROOTS):
        return None
    found, rest = [], name
    while rest:
        part = PARTS.match(rest)
        if part is None or rest[part.end() : part.end() + 1] not in ("", "_"):
            return None
        found.append(part[0])
        rest = rest[part.end() + 1 :]
    return ".".join(found)
