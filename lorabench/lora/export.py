"""A masked, scaled sum of adapters as one adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from lorabench.lora.adapter import Adapter, common_backbone
from lorabench.lora.factors import Factors, LazyFactors, Shape, shapes_of, shared_scale
from lorabench.lora.files.embeddings import joined
from lorabench.lora.files.metadata import inherited
from lorabench.lora.masks import Masks

LayerMasks = Mapping[str, Sequence[Masks]]  # by layer, one per adapter
Scales = Mapping[str, Sequence[float]]


def export(adapters: Sequence[Adapter], masks: LayerMasks | None = None, scales: Scales | None = None) -> Adapter:
    """Return the sum as one adapter whose rank is the sum of the ranks. This is exact.

    down = cat_k(D_k i_k), up = cat_k(scale_k o_k U_k r_k). Layers with scale 0 are omitted. Text encoders are summed in
    the same way. If an adapter's factors are in a file, each layer of the sum is computed when it is used.

    Args:
        adapters: The adapters. If there are several, their own masks are multiplied in.
        masks: Masks by layer, one per adapter. Layers without masks are summed as they are.
        scales: Scales by layer, one per adapter; None: 1.

    Raises:
        UserError: If the adapters were trained on different backbones.
    """
    adapters = jointly(adapters)
    used = [each for k, each in enumerate(adapters) if not scales or any(scale[k] for scale in scales.values())]
    return Adapter(
        summed([each.factors for each in adapters], masks, scales),
        summed([each.text for each in adapters], masks, scales),
        joined([each.tokens for each in used]),
        backbone=common_backbone(adapters),
        metadata=inherited([each.metadata for each in adapters]),
    )


def jointly(adapters: Sequence[Adapter], used: Sequence[bool] | None = None) -> Sequence[Adapter]:
    """Return adapters for joint use. An adapter that is used by itself is returned without its masks.

    Args:
        adapters: Adapters.
        used: Which of them have a scale other than 0; None means all.
    """
    count = len(adapters) if used is None else sum(used)
    return [each.jointly() if count > 1 else each.unmasked() for each in adapters]


def summed(
    parts: Sequence[Mapping[str, Factors]], masks: LayerMasks | None = None, scales: Scales | None = None
) -> Mapping[str, Factors]:
    """Return the masked, scaled sum of factors by layer."""
    shapes = [shapes_of(part) for part in parts]
    present: dict[str, list[int]] = {}
    for layer in sorted({layer for each in shapes for layer in each}):
        present[layer] = [k for k, each in enumerate(shapes) if layer in each and (scales is None or scales[layer][k])]

    def merged(layer: str) -> Factors:
        found = []
        for k in present[layer]:
            factors = parts[k][layer]
            if masks and layer in masks:
                factors = masks[layer][k].masked(factors)
            found.append(factors if scales is None else factors.times(scales[layer][k]))
        down, up = torch.cat([each.down for each in found]), torch.cat([each.up for each in found], dim=1)
        return Factors(down.detach(), up.detach(), shared_scale(found))

    totals: dict[str, Shape] = {}
    for layer, each in present.items():
        if each:
            totals[layer] = (sum(shapes[k][layer][0] for k in each), *shapes[each[0]][layer][1:])
    lazy = LazyFactors(totals, merged)
    return lazy if any(isinstance(part, LazyFactors) for part in parts) else dict(lazy)


def weighted_text(adapters: Sequence[Adapter], scales: Scales | None) -> dict[str, Factors]:
    """Return the sum of the adapters' factors on the text encoders."""
    return dict(summed([each.text for each in adapters], None, scales))
