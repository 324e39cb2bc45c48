"""Gradient checkpointing (Chen et al., arXiv 1604.06174) for a denoiser whose adapters change between forwards.

The activations of a block are not kept and are computed again in the backward pass. By then the adapters may be set for
another forward: the rows of teachers follow those of students. So each block keeps the settings that its adapters had
in its forward, and uses them again in the recomputation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lorabench.lora.layer import MaskedLoRA

Settings = list[tuple[Tensor | None, bool, Sequence[Tensor] | None]]  # scale, masked and own of each adapted layer


def recomputed(module: nn.Module, *inputs: Any) -> Any:
    """Return module(*inputs) and recompute its activations in the backward pass; diffusers calls it for each block."""
    layers = [layer for layer in module.modules() if isinstance(layer, MaskedLoRA)]
    settings = settings_of(layers)

    def forward(*inputs: Any) -> Any:
        with using(layers, settings):
            return module(*inputs)

    return checkpoint(forward, *inputs, use_reentrant=False)


def settings_of(layers: Sequence[MaskedLoRA]) -> Settings:
    """Return the settings of adapted layers for the next forward."""
    return [(layer.scale, layer.masked, layer.own) for layer in layers]


@contextmanager
def using(layers: Sequence[MaskedLoRA], settings: Settings) -> Iterator[None]:
    """Give layers other settings within the block."""
    before = settings_of(layers)
    put(layers, settings)
    try:
        yield
    finally:
        put(layers, before)


def put(layers: Sequence[MaskedLoRA], settings: Settings) -> None:
    """Set the settings of adapted layers."""
    for layer, (scale, masked, own) in zip(layers, settings, strict=True):
        layer.scale, layer.masked, layer.own = scale, masked, own
