"""Metadata of adapter files that other programs read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lorabench.lora.files import names
from lorabench.lora.parts import Parts

BASE = "ss_base_model_version"
TARGETS = "lorabench.targets"  # `lora.targets` of the training, if it is not "attention"
SDXL = "sdxl_base_v1-0"
BASES = ("sdxl", "sd3", "flux")  # how kohya's trainer begins the versions of the families
SDXL_TEXT_WIDTH = 2048
# The first up block of SD1.5 and SD2 has no attention, their blocks have one transformer layer, and only SDXL embeds
# sizes. A second encoder shows SDXL too, without layers of a transformer.
SDXL_ONLY = re.compile(r"up_blocks\.0\.attentions\.|add_embedding\.|.*\.transformer_blocks\.[1-9]|text_encoder_2\.")


def general(adapter: Parts, path: Path, ranks: Mapping[str, int], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the metadata of kohya's trainer and of the model specification (SAI).

    A1111 treats a file with metadata as one of SD1.5, and hides it, unless the metadata name SDXL. The base model of
    SD3 and FLUX.1 is that of the merged files.

    Args:
        adapter: The adapter.
        path: Path of the file, whose stem is the title.
        ranks: Rank by component and layer.
        tensors: Tensors of the file, which are hashed.
    """
    version = adapter.metadata.get(BASE, "")
    fits = version.startswith(BASES[1:] if names.is_transformer(adapter.shapes) else BASES)
    base = version if fits else SDXL if is_sdxl(adapter) else None
    digest = data_hash(tensors)
    found = {
        "modelspec.sai_model_spec": "1.0.0", "modelspec.title": path.stem, "modelspec.hash_sha256": f"0x{digest}",
        "sshs_model_hash": digest, "ss_output_name": path.stem,
    }  # fmt: skip
    if ranks:
        rank = str(max(ranks.values())) if len(set(ranks.values())) == 1 else "Dynamic"
        found |= {"ss_network_dim": rank, "ss_network_alpha": rank}
        if not names.is_transformer(adapter.shapes):
            found["ss_network_module"] = "networks.lora"
    if TARGETS in adapter.metadata:
        found[TARGETS] = adapter.metadata[TARGETS]
    if base is None:
        return found
    found[BASE] = base
    if base.startswith("sdxl"):
        found["modelspec.architecture"] = "stable-diffusion-xl-v1-base/lora"
    return found


def inherited(several: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the metadata of a merge of files with these metadata: base model and layers, if all name the same."""
    first = several[0] if several else {}
    same = [key for key in (BASE, TARGETS) if all(each.get(key) == first.get(key) for each in several)]
    return {key: first[key] for key in same if first.get(key)}


def trained_layers(targets: str) -> dict[str, str]:
    """Return the metadata of a LoRA that was trained on a set of layers: its name, unless it is "attention"."""
    return {} if targets == "attention" else {TARGETS: targets}


def is_sdxl(adapter: Parts) -> bool:
    """Return whether the layers show that the base model is of the SDXL family."""
    shapes = adapter.shapes
    if names.is_transformer(shapes):
        return False
    if any(SDXL_ONLY.match(layer) for layer in shapes):
        return True
    reads_text = (shape for layer, shape in shapes.items() if layer.endswith((".attn2.to_k", ".attn2.to_v")))
    return any(shape[1] == SDXL_TEXT_WIDTH for shape in reads_text)


def data_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a .safetensors file after its header: wider types first, then by name."""
    digest = hashlib.sha256()
    for key in sorted(tensors, key=lambda key: (-tensors[key].element_size(), key)):
        digest.update(tensors[key].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
