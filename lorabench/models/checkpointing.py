"""Gradient checkpointing (Chen et al., arXiv 1604.06174) for a UNet whose adapters change between forwards.

A block's activations are thrown away and computed again in the backward pass. By then the adapters may be set for
another forward: the teachers' rows follow the students', the removing pass of a cycle the adding one. So a block
remembers the rows and gates that its adapters had, and has them again while it is computed again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lorabench.lora.layer import GatedLoRA

Rows = list[tuple[Tensor | None, bool]]


def recomputed(module: nn.Module, *inputs: Any) -> Any:
    """module(*inputs), whose activations are computed again in the backward pass; what diffusers calls for a block."""
    layers = [layer for layer in module.modules() if isinstance(layer, GatedLoRA)]
    rows = rows_of(layers)

    def forward(*inputs: Any) -> Any:
        with using(layers, rows):
            return module(*inputs)

    return checkpoint(forward, *inputs, use_reentrant=False)


def rows_of(layers: Sequence[GatedLoRA]) -> Rows:
    return [(layer.gain, layer.gated) for layer in layers]


@contextmanager
def using(layers: Sequence[GatedLoRA], rows: Rows) -> Iterator[None]:
    """The layers with other rows, for a while."""
    before = rows_of(layers)
    put(layers, rows)
    try:
        yield
    finally:
        put(layers, before)


def put(layers: Sequence[GatedLoRA], rows: Rows) -> None:
    for layer, (gain, gated) in zip(layers, rows, strict=True):
        layer.gain, layer.gated = gain, gated
