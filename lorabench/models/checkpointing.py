"""Gradient checkpointing (Chen et al., arXiv 1604.06174) for a UNet whose adapters change between forwards.

A block's activations are thrown away and computed again in the backward pass. By then the adapters may be set for
another forward: the teachers' rows follow the students', the removing pass of a cycle the adding one. So a block
remembers the rows and masks that its adapters had, and has them again while it is computed again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lorabench.lora.layer import MaskedLoRA

Rows = list[tuple[Tensor | None, bool]]


def recomputed(module: nn.Module, *inputs: Any) -> Any:
    """module(*inputs), whose activations are computed again in the backward pass; what diffusers calls for a block."""
    layers = [layer for layer in module.modules() if isinstance(layer, MaskedLoRA)]
    rows = rows_of(layers)

    def forward(*inputs: Any) -> Any:
        with using(layers, rows):
            return module(*inputs)

    return checkpoint(forward, *inputs, use_reentrant=False)


def rows_of(layers: Sequence[MaskedLoRA]) -> Rows:
    return [(layer.scale, layer.masked) for layer in layers]


@contextmanager
def using(layers: Sequence[MaskedLoRA], rows: Rows) -> Iterator[None]:
    """The layers with other rows, for a while."""
    before = rows_of(layers)
    put(layers, rows)
    try:
        yield
    finally:
        put(layers, before)


def put(layers: Sequence[MaskedLoRA], rows: Rows) -> None:
    for layer, (scale, masked) in zip(layers, rows, strict=True):
        layer.scale, layer.masked = scale, masked
