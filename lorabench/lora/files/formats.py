"""Formats of adapter files: the keys of the factors, the supported parts, and the metadata of the format.

kohya        read by A1111, Forge, ComfyUI, Fooocus, sd-scripts and diffusers
diffusers    read by diffusers; ComfyUI reads none of its attention layers
store        read by lorabench: diffusers' keys, with every part
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lorabench.base import UserError
from lorabench.lora.files import names
from lorabench.lora.files.names import DENOISER
from lorabench.lora.parts import Parts

Keys = dict[str, tuple[str, str, int | None]]  # by component and layer: down, up, alpha
PEFT_METADATA = "lora_adapter_metadata"  # metadata key of the peft configs that diffusers writes


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        name: Name of the format in `task.format`.
        keys: Returns the keys of an adapter's factors, and the alpha that readers divide by the rank; None: no alpha.
        notes: Returns metadata from the ranks by component and layer.
        bundles: Whether token embeddings are in the file, which diffusers refuses; else they get files of their own.
        keeps_all: Whether the format supports masks and a backbone.
    """

    name: str
    keys: Callable[[Parts], Keys]
    notes: Callable[[Parts, Mapping[str, int]], dict[str, str]]
    bundles: bool = False
    keeps_all: bool = False

    def check(self, adapter: Parts) -> None:
        """Raise UserError if the format does not support a part of the adapter."""
        if self.keeps_all:
            return
        if adapter.masks:
            raise UserError(
                f"the {self.name} format has no place for learned masks; use save(..., format='store') in Python"
            )
        if adapter.backbone is not None:
            raise UserError(
                f"the {self.name} format has no place for changed base weights ({adapter.backbone}); use an adapter of "
                "the plain model"
            )


def _kohya(adapter: Parts) -> Keys:
    """Return kohya's names, and one alpha for the whole file: the highest rank.

    Readers multiply by alpha / rank, so `up` holds the inverse in layers of a lower rank. (alpha = rank in each layer
    would mean the same, but diffusers 0.42 drops alphas that differ.) alpha is in fp32, because bf16 lacks some
    integers.

    SDXL's layers have LDM's block numbers, as in files of kohya's trainer. These numbers depend on the number of layers
    in a block. If the layers do not show it, all keep diffusers' block names, which A1111 and ComfyUI also read. Names
    are never mixed, because diffusers drops one kind from a file that has both.
    """
    layers = [*(f"{DENOISER}.{layer}" for layer in adapter.factors), *adapter.text]
    ldm, alpha = names.ldm_is_safe(list(adapter.factors)), adapter.rank
    keys = {}
    for layer in layers:
        stem = names.kohya_stem(layer, ldm)
        if names.layer(stem) != layer:
            raise UserError(f"kohya's format has no name for {layer}; use task.format=diffusers")
        keys[layer] = f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", alpha
    return keys


def _diffusers(adapter: Parts) -> Keys:
    """Return peft's names for the UNet, and `lora_linear_layer` for text encoders, as diffusers writes them.

    (diffusers refuses peft's names if an encoder has adapters on its MLPs only.) No alpha is written, which means
    alpha = rank: the update is `up @ down` without a factor.
    """
    keys = {}
    for layer in [*(f"{DENOISER}.{layer}" for layer in adapter.factors), *adapter.text]:
        component = layer.partition(".")[0]
        stem = f"{names.file_component(layer)}.{names.file_path(layer)}"
        down, up = ("lora_A", "lora_B") if component == DENOISER else ("lora_linear_layer.down", "lora_linear_layer.up")
        keys[layer] = f"{stem}.{down}.weight", f"{stem}.{up}.weight", None
    return keys


def _peft_configs(adapter: Parts, ranks: Mapping[str, int]) -> dict[str, str]:
    """Return peft's configuration of each component, in which alpha is the rank of every layer.

    diffusers before 0.40 takes one alpha for all layers if a file has none, and scales layers of other ranks wrongly.
    Paths of the first text encoder have no `text_model` here: peft compares the ends of module paths, and
    transformers 5 has no such module.
    """
    options = {}
    for component in sorted({names.file_component(layer) for layer in ranks}):
        mine = {layer.partition(".")[2].removeprefix("text_model."): rank
                for layer, rank in ranks.items() if names.file_component(layer) == component}  # fmt: skip
        rank = Counter(mine.values()).most_common()[0][0]
        others = {layer: each for layer, each in mine.items() if each != rank}
        config = {"r": rank, "lora_alpha": rank, "target_modules": sorted(mine), "rank_pattern": others,
                  "alpha_pattern": others}  # fmt: skip
        options |= {f"{component}.{option}": value for option, value in config.items()}
    return {PEFT_METADATA: json.dumps(options)} if options else {}


def _none(adapter: Parts, ranks: Mapping[str, int]) -> dict[str, str]:
    return {}


FORMATS = {
    "kohya": Format("kohya", _kohya, _none),
    "diffusers": Format("diffusers", _diffusers, _peft_configs),
    "store": Format("store", _diffusers, _peft_configs, bundles=True, keeps_all=True),
}


def format_of(adapter: Parts, name: str) -> Format:
    """Return the format in which an adapter is written: diffusers' instead of kohya's for a transformer."""
    return FORMATS["diffusers" if name == "kohya" and names.is_transformer(adapter.factors) else name]
