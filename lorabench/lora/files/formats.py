"""Formats of adapter files: the keys of the factors, the supported parts, and the metadata of the format.

kohya        read by A1111, Forge, ComfyUI, Fooocus, sd-scripts and diffusers; that of SD3 by ComfyUI and sd-scripts
diffusers    read by diffusers; ComfyUI reads no attention layer of SDXL, and all layers of SD3 and FLUX.1
store        read by lorabench: diffusers' keys, with every part
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from lorabench.base import UserError
from lorabench.lora.factors import Factors, shapes_of
from lorabench.lora.files import names, original_names
from lorabench.lora.files.names import DENOISER
from lorabench.lora.files.transformer_names import is_flux
from lorabench.lora.parts import Parts

Keys = dict[str, tuple[str, str, int | Literal["rank"] | None]]  # by component and layer: down, up, alpha
PEFT_METADATA = "lora_adapter_metadata"  # metadata key of the peft configs that diffusers writes


def named(adapter: Parts) -> Iterator[tuple[str, Factors]]:
    """Yield all factors by component and module path, "unet.mid_block.attentions.0.proj_in"."""
    yield from ((f"{DENOISER}.{layer}", factors) for layer, factors in adapter.factors.items())
    yield from adapter.text.items()


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        name: Name of the format in `task.format`.
        keys: Returns the keys of an adapter's factors, and the alpha that readers divide by the rank: a number, "rank"
            for that of the layer, or None for no alpha.
        notes: Returns metadata from the ranks by component and layer.
        layers: Yields the factors by component and layer of the file.
        bundles: Whether token embeddings are in the file, which diffusers refuses; else they get files of their own.
        keeps_all: Whether the format supports masks and a backbone.
    """

    name: str
    keys: Callable[[Parts], Keys]
    notes: Callable[[Parts, Mapping[str, int]], dict[str, str]]
    layers: Callable[[Parts], Iterator[tuple[str, Factors]]] = named
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


def _kohya_transformer(adapter: Parts) -> Keys:
    """Return kohya's names for SD3 and FLUX.1: those of the original code, with the rank as alpha.

    diffusers' converter ignores the alpha of FLUX.1's last layers.
    """
    layers = [*(f"{DENOISER}.{name}" for name in original_names.grouped(adapter)), *adapter.text]
    stems = {layer: names.kohya_stem(layer, ldm=False) for layer in layers}
    return {layer: (f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", "rank") for layer, stem in stems.items()}


def _network_module(adapter: Parts, ranks: Mapping[str, int]) -> dict[str, str]:
    """Return the module of sd-scripts that reads the file."""
    family = "flux" if is_flux(shapes_of(adapter.factors)) else "sd3"
    return {"ss_network_module": f"networks.lora_{family}"}


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


KOHYA_TRANSFORMER = Format("kohya", _kohya_transformer, _network_module, original_names.original)


def format_of(adapter: Parts, name: str) -> Format:
    """Return the format in which an adapter is written; kohya's differs for transformers."""
    return KOHYA_TRANSFORMER if name == "kohya" and names.is_transformer(adapter.factors) else FORMATS[name]


def lost_in_diffusers(adapter: Parts, name: str) -> list[str]:
    """Return the layers of the denoiser that diffusers ignores in a file of this format, without an error.

    diffusers 0.42 has no converter of kohya's names of SD3, and that of FLUX.1 is for layers in blocks.
    """
    if format_of(adapter, name) is not KOHYA_TRANSFORMER:
        return []
    flux = is_flux(shapes_of(adapter.factors))
    return [layer for layer in adapter.factors if not (flux and "transformer_blocks." in layer)]
