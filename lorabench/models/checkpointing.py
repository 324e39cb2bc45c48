"""Gradient checkpointing (Chen et al., arXiv 1604.06174) for a denoiser whose adapters change between forward passes.

The activations of a block are not kept, but recomputed in the backward pass. By then the adapters may have the settings
of another forward pass, since the rows of teachers follow those of students. So each block stores the settings that its
adapters had in its forward pass, and uses them for the recomputation.
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
    """Return module(*inputs), whose activations are recomputed in the backward pass. diffusers calls it per block."""
    layers = [layer for layer in module.modules() if isinstance(layer, MaskedLoRA)]
    settings = settings_of(layers)

    def forward(*inputs: Any) -> Any:
        with using(layers, settings):
            return module(*inputs)

    return checkpoint(forward, *inputs, use_reentrant=False)


def settings_of(layers: Sequence[MaskedLoRA]) -> Settings:
    """Return the settings of adapted layers for the next forward pass."""
    return [(layer.scale, layer.masked, layer.own) for layer in layers]


@contextmanager
def using(layers: Sequence[MaskedLoRA], settings: Settings) -> Iterator[None]:
    """Use other settings of layers in the block, and restore the previous ones afterwards."""
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
