"""Merges that compute a new update for each layer. The result is one LoRA, whose adapters cannot be separated again."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorabench.merging.merge import Merge, Merged, MergeEnvironment, MergeItem
from lorabench.models.layer import Layer
from lorabench.models.layer_map import text_layers

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.adapter import Factors, LoRA


@dataclass(frozen=True, kw_only=True)
class LayerwiseMerge(Merge):
    """One new update per layer. Text encoders are merged too, or summed if activations are needed."""

    version: ClassVar[int] = 2  # merges text encoders, and compresses dense updates by subspace iteration

    @abstractmethod
    def combine(self, updates: Sequence[Factors], layer: Layer, seed: int, moments: Tensor | None) -> Factors | Tensor:
        """Return the merged update of a layer.

        Args:
            updates: Factors of each adapter, with rank 0 if it does not adapt the layer.
            layer: The layer.
            seed: Seed of the pair. Random draws are seeded with it and the name of the layer.
            moments: Second moments of the activations that `activations` requests, [adapters, n, n].

        Returns:
            Factors, or a dense update [out, in], which becomes the nearest factors of `file_rank`.
        """

    def file_rank(self, layer: Layer) -> int:
        """Return the rank in the file for a layer with a dense update: the sum of the adapters' ranks."""
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
            text = {} if self.activations else text_layers(item.loras, item.pair.roles)
            results.append(self.combined(item.loras, layers, item.seed(env.seed), moments, text, env))
        return results

    def combined(
        self,
        loras: Sequence[LoRA],
        layers: Mapping[str, Layer],
        seed: int,
        moments: Mapping[str, Tensor],
        text: Mapping[str, Layer] | None = None,
        env: MergeEnvironment | None = None,
    ) -> Merged:
        """Merge adapters layer by layer.

        The error of the file is ||exact - file||_F / ||exact||_F over all layers as one vector; 0 for exact factors.

        Args:
            loras: The adapters.
            layers: Layers of the denoiser.
            seed: Seed of the pair.
            moments: Second moments of activations by layer.
            text: Layers of the text encoders that are merged in the same way; the others are summed.
            env: Device and progress. None: the CPU, without progress.
        """
        from torch import Tensor

        from lorabench.lora.compress import nearest, truncated
        from lorabench.lora.export import export, jointly
        from lorabench.lora.factors import Factors
        from lorabench.merging.masks import updates_at

        loras, merged, lost, whole = jointly(loras), {}, 0.0, 0.0
        text = text or {}
        place, every = device(env.trainer.accelerator if env else "cpu"), {**layers, **text}
        for done, (name, layer) in enumerate(every.items(), start=1):
            updates = updates_at(loras, layer)
            if self.dense:
                updates = [Factors(each.down.to(place), each.up.to(place), each.scale) for each in updates]
            update = self.combine(updates, layer, seed, moments.get(name))
            rank = min(self.file_rank(layer), layer.in_features, layer.out_features)
            if isinstance(update, Tensor):
                update, cut, total = nearest(update, rank)
                lost, whole = lost + cut, whole + total
            elif update.rank > rank:
                update, cut, total = truncated(update, rank)
                lost, whole = lost + cut, whole + total
            merged[name] = update
            if env is not None and env.share is not None:
                env.share(done / len(every))
        error = (lost / whole) ** 0.5 if whole else 0.0
        others = export([each.replaced({}) for each in loras])  # tokens, and text encoders, which are summed
        return Merged(
            others.replaced({name: merged[name] for name in layers}, {name: merged[name] for name in text} or None),
            error=error,
        )


def device(accelerator: str) -> str:
    """Return the device on which dense updates are computed."""
    import torch

    return "cuda" if accelerator == "gpu" and torch.cuda.is_available() else "cpu"
