"""Merges that make one new update of each layer. The result is one LoRA; its adapters cannot be told apart again."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabench.merging.merge import Merge, Merged, MergeEnvironment, MergeItem
from lorabench.models.layer import Layer

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.adapter import Factors, LoRA


@dataclass(frozen=True, kw_only=True)
class LayerwiseMerge(Merge):
    """One update per layer, made of those of the adapters. Their parts for the text encoders are summed."""

    @abstractmethod
    def combine(self, updates: Sequence[Factors], layer: Layer, seed: int, moments: Tensor | None) -> Factors | Tensor:
        """Return the merged update of a layer.

        Args:
            updates: Factors of each adapter, of rank 0 if it does not adapt the layer.
            seed: Seed of the pair; a random draw is seeded with it and the name of the layer.
            moments: What `activations` asks for, [adapters, n, n].

        Returns:
            Factors, or a dense update [out, in], which becomes the nearest factors of `file_rank`.
        """

    def file_rank(self, layer: Layer) -> int:
        """Return the rank of the file at a layer with a dense update: the sum of the adapters' ranks."""
        return sum(layer.ranks)

    def merge_pairs(self, items: Sequence[MergeItem], env: MergeEnvironment) -> list[Merged]:
        results = []
        for item in items:
            layers = env.layers.adapted(item.loras, item.pair.roles)
            self.check(layers)
            moments: Mapping[str, Tensor] = {}
            if self.activations is not None:
                from lorabench.merging.moments import collect

                moments = collect(self.activations, item, layers, env)
            results.append(self.combined(item.loras, layers, item.seed(env.seed), moments))
        return results

    def combined(
        self, loras: Sequence[LoRA], layers: Mapping[str, Layer], seed: int, moments: Mapping[str, Tensor]
    ) -> Merged:
        """Merge adapters layer by layer.

        The error of the file is ||exact - file||_F / ||exact||_F over all layers as one vector; 0 for exact factors.
        """
        from torch import Tensor

        from lorabench.lora.export import export, jointly
        from lorabench.merging.masks import updates_at

        loras, merged, lost, whole = jointly(loras), {}, 0.0, 0.0
        for name, layer in layers.items():
            update = self.combine(updates_at(loras, layer), layer, seed, moments.get(name))
            if isinstance(update, Tensor):
                update, cut, total = nearest(update, min(self.file_rank(layer), *update.shape))
                lost, whole = lost + cut, whole + total
            merged[name] = update
        error = (lost / whole) ** 0.5 if whole else 0.0
        others = export([each.replaced({}) for each in loras])  # text encoders and tokens
        return Merged(others.replaced(merged), error=error)


def nearest(update: Tensor, rank: int) -> tuple[Factors, float, float]:
    """Return the nearest factors of a rank (Eckart and Young 1936), and the squared norms of the rest and of all."""
    import torch

    from lorabench.lora.adapter import Factors

    u, s, vt = torch.linalg.svd(update.float(), full_matrices=False)
    squares, root = s.double().square(), s[:rank].sqrt()
    factors = Factors(root[:, None] * vt[:rank], u[:, :rank] * root)
    return factors, float(squares[rank:].sum()), float(squares.sum())
