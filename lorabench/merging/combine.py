"""Merges that are no masked sums: a method combines the updates of each layer, and the result is one ordinary LoRA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lorabench.lora.adapter import Factors, LoRA
from lorabench.lora.layer import weighted_text
from lorabench.merging.method import Method
from lorabench.models.layer import Layer


def combine(method: Method, loras: Sequence[LoRA], layers: Mapping[str, Layer], seed: int) -> tuple[LoRA, float]:
    """The merge as one LoRA, and how far the file's rank keeps it from what the method asks for.

    The distance is ||asked for - file||_F / ||asked for||_F, over all layers as one vector; 0 where factors are exact.
    seed: of the pair.  Parts for the text encoders are summed.
    """
    merged, lost, whole = {}, 0.0, 0.0
    for name, layer in layers.items():
        update = method.combine([adapter(lora, layer) for lora in loras], layer, seed)
        assert update is not None
        if isinstance(update, Tensor):
            rank = min(method.rank_at(layer), *update.shape)
            update, cut, all_of_it = nearest(update, rank)
            lost, whole = lost + cut, whole + all_of_it
        merged[name] = update
    return LoRA(merged, weighted_text(loras, None)), (lost / whole) ** 0.5 if whole else 0.0


def adapter(lora: LoRA, layer: Layer) -> Factors:
    """An adapter's factors at a layer, of rank 0 where it leaves the layer alone."""
    return lora.get(layer.name) or Factors(torch.zeros(0, layer.in_features), torch.zeros(layer.out_features, 0))


def nearest(update: Tensor, rank: int) -> tuple[Factors, float, float]:
    """The nearest factors of a rank (Eckart and Young 1936), balanced; squared norms of what is lost and of all."""
    u, s, vt = torch.linalg.svd(update.float(), full_matrices=False)
    squares, root = s.double().square(), s[:rank].sqrt()
    factors = Factors(root[:, None] * vt[:rank], u[:, :rank] * root)
    return factors, float(squares[rank:].sum()), float(squares.sum())


def scaled(lora: LoRA, strength: float) -> LoRA:
    """A LoRA at another strength."""

    def times(parts: Mapping[str, Factors]) -> dict[str, Factors]:
        return {name: Factors(each.down, each.up * strength) for name, each in parts.items()}

    return LoRA(times(lora), times(lora.text))
