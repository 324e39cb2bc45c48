"""The adapters of a merge while sampling, and their scales by step and layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorabench.data.concepts import Role
from lorabench.lora.adapter import LoRA
from lorabench.lora.layer import AllMasks
from lorabench.models.layer import Layer
from lorabench.models.layer_map import text_layers
from lorabench.sampling.rule import Context, Sampling, adapters_used


@dataclass(frozen=True)
class Parts:
    """The separate adapters of a merge, which a sampling rule can scale.

    Args:
        adapters: The adapters, contents first.
        roles: Role of each adapter.
        scales: The merge's own scale of each adapter at a layer.
        masks: Masks by layer, one per adapter; None without.
        strength: Further scale of all adapters of a role.
    """

    adapters: Sequence[LoRA]
    roles: tuple[Role, ...]
    scales: Callable[[Layer], tuple[float, ...]]
    masks: AllMasks | None = None
    strength: Mapping[Role, float] | None = None


def whole(file: LoRA) -> Parts:
    """Return a merge without separate adapters as one part, for rules that treat all adapters alike."""
    return Parts([file], ("content",), lambda layer: (1.0,) * len(layer.ranks))


@dataclass(frozen=True)
class StepScales:
    """Adapter scales of a whole sampling.

    Args:
        layers: Names of the layers of the denoiser.
        values: [steps, layers, adapters] in float64.
        text: Scale of each adapter by layer of the text encoders, the same in all steps.
    """

    layers: Sequence[str]
    values: Tensor
    text: Mapping[str, tuple[float, ...]]

    def at(self, step: int, branches: Tensor | None = None) -> dict[str, Tensor]:
        """Return [1, adapters] by layer; equal layers share one tensor.

        Args:
            branches: [rows, adapters], further scales by row; then [rows, adapters] by layer.
        """
        by_layer = dict(zip(self.layers, map(tuple, self.values[step].tolist()), strict=True))
        tensors = {each: torch.tensor([each]) for each in set(by_layer.values())}
        if branches is not None:
            tensors = {each: tensor * branches for each, tensor in tensors.items()}
        return {layer: tensors[each] for layer, each in by_layer.items()}


def step_scales(sampling: Sampling, parts: Parts, context: Context) -> StepScales:
    """Return the scales of the merge times those of the rule.

    The text encoders have the scales of the merge, but none of an adapter that no branch uses.
    """
    factors = [1.0 if parts.strength is None else parts.strength[role] for role in parts.roles]

    def own(layer: Layer) -> tuple[float, ...]:
        return tuple(scale * factor for scale, factor in zip(parts.scales(layer), factors, strict=True))

    static = torch.tensor([own(layer) for layer in context.layers.values()], dtype=torch.float64)
    values = static.reshape(1, len(context.layers), len(parts.roles)).expand(context.steps, -1, -1)
    rule = sampling.scales(parts.adapters, context)
    used = adapters_used(sampling, context)
    text = {
        name: tuple(scale * use for scale, use in zip(own(layer), used, strict=True))
        for name, layer in text_layers(parts.adapters, parts.roles).items()
    }
    return StepScales(list(context.layers), values if rule is None else values * rule, text)
