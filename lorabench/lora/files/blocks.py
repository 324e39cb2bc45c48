"""Weights of a LoRA by block: numbers as supermerger and kohya write them, module paths, or presets.

12, 17, 20 or 26 numbers belong to these blocks, which carry LDM's numbers (BASE: text encoders, IN: down blocks, M00:
the middle, OUT: up blocks):

    12   BASE IN04 IN05 IN07 IN08 M00 OUT00 to OUT05                 attention of SDXL
    17   BASE IN01 IN02 IN04 IN05 IN07 IN08 M00 OUT03 to OUT11       attention of SD1.5
    20   BASE IN00 to IN08 M00 OUT00 to OUT08                        SDXL
    26   BASE IN00 to IN11 M00 OUT00 to OUT11                        SD1.5

A block without a number has weight 0, as in supermerger; kohya's scripts leave it at 1, which matters for 17 numbers
only, since these name no block OUT00 to OUT02. Embeddings of time and size belong to IN00. Numbers and presets are
those of a UNet; layers of SD3 and FLUX.1 are chosen by module paths.

Sources: sd-webui-supermerger, scripts/mergers/pluslora.py (`to26`); sd-scripts, networks/svd_merge_lora.py
(`get_lbw_block_index`).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lorabench.base import UserError
from lorabench.config.choices import unknown
from lorabench.lora.files.names import DENOISER, is_transformer, kohya_stem


def _numbered(side: str, *numbers: int) -> list[str]:
    return [f"{side}{number:02d}" for number in numbers]


LISTS = {
    12: ["BASE", *_numbered("IN", 4, 5, 7, 8), "M00", *_numbered("OUT", *range(6))],
    17: ["BASE", *_numbered("IN", 1, 2, 4, 5, 7, 8), "M00", *_numbered("OUT", *range(3, 12))],
    20: ["BASE", *_numbered("IN", *range(9)), "M00", *_numbered("OUT", *range(9))],
    26: ["BASE", *_numbered("IN", *range(12)), "M00", *_numbered("OUT", *range(12))],
}
LIST = "{}=[1,0,0,0,0,0,1,1,1,0,0,0]"
LDM = re.compile(r"lora_unet_(input|middle|output)_blocks?_(\d+)_")
NOTHING = {"down_blocks": 0.0, "mid_block": 0.0, "up_blocks": 0.0, "time_embedding": 0.0, "add_embedding": 0.0,
           "conv_in": 0.0, "conv_out": 0.0, "text_encoder": 0.0, "text_encoder_2": 0.0}  # fmt: skip
PRESETS: dict[str, dict[str, dict[str, float]]] = {
    "blora": {"content": {**NOTHING, "up_blocks.0.attentions.0": 1.0},
              "style": {**NOTHING, "up_blocks.0.attentions.1": 1.0}},
    "style_only_up": {"style": {"down_blocks": 0.0, "mid_block": 0.0}},
    "style_only_down": {"style": {"mid_block": 0.0, "up_blocks": 0.0}},
    "content_only_down": {"content": {"mid_block": 0.0, "up_blocks": 0.0}},
    "style_without_text": {"style": {"text_encoder": 0.0, "text_encoder_2": 0.0}},
}  # fmt: skip


def block_weights(layers: Sequence[str], blocks: Any, role: str, key: str, name: str) -> Callable[[str], float]:
    """Return the weight of a layer by its block.

    Args:
        layers: Layers of a file, "<component>.<module path>".
        blocks: Numbers, as a list or with commas between them; {module path: weight}, of which later ones win and
            other layers keep 1; or the name of a preset.
        role: "content" or "style", for presets.
        key: Of the setting, for messages.
        name: Of the file, for messages.

    Raises:
        UserError: If the blocks are none of these, or name no layer of the file.
    """
    paths = [layer.removeprefix(f"{DENOISER}.") for layer in layers]
    shown = next((path for path in paths if is_transformer([path])), "up_blocks.0")
    example = f"{key}={{{'.'.join(shown.split('.')[:2])}: 0.5}}"
    if not isinstance(blocks, Mapping) and is_transformer(paths):
        raise UserError(f"{key} has weights of a UNet's blocks, and {name} adapts a transformer; use {example}")
    if isinstance(blocks, str) and blocks in PRESETS:
        return _by_module(PRESETS[blocks].get(role, {}))
    if isinstance(blocks, Mapping):
        modules = {str(module): _number(value, key, example) for module, value in blocks.items()}
        if lost := [module for module in modules if not any(within(path, module) for path in paths)]:
            raise UserError(f"{key} names {lost[0]}, in which {name} adapts no layer; use {example}")
        return _by_module(modules)
    numbers = blocks.split(",") if isinstance(blocks, str) else blocks
    if isinstance(blocks, str) and len(numbers) == 1:
        raise UserError(unknown(key, blocks, PRESETS))
    if not isinstance(numbers, Sequence) or len(numbers) not in LISTS:
        raise UserError(
            f"{key} must have 12, 17, 20 or 26 numbers, a preset ({', '.join(PRESETS)}) or module paths; "
            f"use {LIST.format(key)}"
        )
    found = dict(zip(LISTS[len(numbers)], (_number(each, key, LIST.format(key)) for each in numbers), strict=True))
    if lost := sorted({block_id(layer) for layer in layers} - found.keys()):
        print(f"{name}: {len(numbers)} numbers name no {', '.join(lost)}: 0, as in supermerger", file=sys.stderr)
    return lambda layer: found.get(block_id(layer), 0.0)


def _by_module(modules: Mapping[str, float]) -> Callable[[str], float]:
    def weight(layer: str) -> float:
        path = layer.removeprefix(f"{DENOISER}.")
        return next((value for module, value in reversed([*modules.items()]) if within(path, module)), 1.0)

    return weight


def within(layer: str, module: str) -> bool:
    """Return whether a layer is in a module."""
    return f"{layer}.".startswith(f"{module}.")


def _number(value: Any, key: str, example: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UserError(f"{key} has {value!r}, which is not a number; use {example}") from None


def block_id(layer: str) -> str:
    """Return the block of a layer "<component>.<module path>" of SDXL: "BASE", "IN04", "M00" or "OUT00".

    >>> block_id("unet.up_blocks.0.attentions.1.proj_in"), block_id("unet.mid_block.attentions.0.proj_in")
    ('OUT01', 'M00')
    """
    if not layer.startswith(f"{DENOISER}."):
        return "BASE"
    if match := LDM.match(kohya_stem(layer, ldm=True)):
        side = {"input": "IN", "middle": "M", "output": "OUT"}[match[1]]
        return "M00" if side == "M" else f"{side}{int(match[2]):02d}"
    return "OUT09" if layer.endswith(".conv_out") else "IN00"
