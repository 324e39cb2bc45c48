"""Parts that only adapter files of lorabench have: learned masks, scales and the backbone."""

from __future__ import annotations

import json
from collections.abc import Mapping

from torch import Tensor

from lorabench.lora.masks import Masks
from lorabench.lora.parts import Parts

BACKBONE = "lorabench.backbone"  # metadata key
SCALES = "lorabench.scales"  # metadata key, JSON by component and layer
MASK = "lorabench_mask|"  # beginning of a key "<layer>|<o, r or i>"


def is_mask(key: str) -> bool:
    """Return whether a key of a file is that of a mask."""
    return key.startswith(MASK)


def masks(tensors: Mapping[str, Tensor]) -> dict[str, Masks]:
    """Return the masks by layer from the tensors of a file."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        layer, _, kind = key.removeprefix(MASK).rpartition("|")
        found.setdefault(layer, {})[kind] = tensor
    return {layer: Masks(**kinds) for layer, kinds in found.items()}


def mask_tensors(adapter: Parts) -> dict[str, Tensor]:
    """Return the tensors of an adapter's masks by their keys in a file."""
    return {
        f"{MASK}{layer}|{kind}": tensor
        for layer, each in adapter.masks.items()
        for kind, tensor in each.named().items()
    }


def scales(metadata: Mapping[str, str]) -> dict[str, float]:
    """Return the scales by component and layer from a file's metadata; `up` includes them."""
    try:
        return {layer: float(scale) for layer, scale in json.loads(metadata.get(SCALES, "{}")).items()}
    except (ValueError, TypeError, AttributeError):
        return {}  # another program's


def notes(adapter: Parts, scales: Mapping[str, float]) -> dict[str, str]:
    """Return the metadata of an adapter."""
    found = {SCALES: json.dumps(scales)} if scales else {}
    return found if adapter.backbone is None else {**found, BACKBONE: adapter.backbone}
