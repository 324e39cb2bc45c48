"""Merges that learn the masks of the adapters with Adam."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorabench.config.settings import setting
from lorabench.data.pairs import Pair
from lorabench.merging.masked import CONCEPTS, parts_of_masked
from lorabench.merging.merge import Merge, Merged, MergeEnvironment, MergeItem
from lorabench.models.layer import Layer

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.lora.layer import AllMasks
    from lorabench.merging.step import MergeStep


@dataclass(kw_only=True)
class FitSpec:
    """Settings of the training of masks.

    Args:
        steps: Optimizer steps.
        lr: Learning rate of Adam.
        batch: Images of each concept per step, drawn with replacement.
    """

    steps: int = setting(least=1)
    lr: float = setting(above=0)
    batch: int = setting(least=1)


@dataclass(frozen=True, kw_only=True)
class LearnedMasks(Merge):
    """A sum of adapters with learned masks.

    Args:
        fit: Optimizer steps, learning rate and batch.
        concepts: See `MaskedSum`.

    Attributes:
        basis: Factors that rank masks multiply, "raw" or "svd".
    """

    basis: ClassVar[str] = "raw"
    parts = parts_of_masked

    fit: FitSpec
    concepts: str = setting("joint", options=CONCEPTS)

    @property
    def needs_model(self) -> bool:
        return True

    @property
    def needs_images(self) -> bool:
        return True

    @abstractmethod
    def masks(self, layers: Mapping[str, Layer], seed: int) -> AllMasks:
        """Return the initial masks.

        All layers are given at once, because several layers may share a mask.

        Args:
            layers: The adapted layers.
            seed: Seed of the pair. Random draws are seeded with it and the name of the layer.
        """

    @abstractmethod
    def loss(self, step: MergeStep, masks: AllMasks) -> dict[str, Tensor]:
        """Return the weighted terms [pairs] whose sum is minimized. Called once per step.

        Masks of several pairs in one batch have a leading axis [pairs], so reduce over the last axis only.
        """

    def steps(self, images: Sequence[int]) -> int:
        """Return the number of optimizer steps for concepts with these numbers of training images."""
        return self.fit.steps

    def stop(self, terms: Mapping[str, Tensor]) -> Tensor | None:
        """Return which pairs [pairs] stop after a step with these terms; None if none does."""
        return None

    def scales(self, layer: Layer) -> tuple[float, ...]:
        """Return the scale of each adapter: one, because the masks are learned."""
        return (1.0,) * len(layer.ranks)

    def optimizer_steps(self, pair: Pair) -> int:
        return self.fit.steps * (len(pair.couples) if self.concepts == "uniform" and not pair.is_single else 1)

    def merge_pairs(self, items: Sequence[MergeItem], env: MergeEnvironment) -> list[Merged]:
        from lorabench.merging.masks import merge_by_concepts

        return merge_by_concepts(self, items, env)

    def joint(self, items: Sequence[MergeItem], env: MergeEnvironment) -> list[Merged]:
        """Merge all adapters of each item at once. Items with adapters of equal shapes share a batch."""
        from lorabench.merging.masks import rebased

        items = [MergeItem(tuple(rebased(item.loras, self.basis)), item.pair) for item in items]
        alike: dict[str, list[int]] = {}
        for index, item in enumerate(items):
            alike.setdefault(str((item.pair.roles, [lora.shape for lora in item.loras])), []).append(index)
        results: dict[int, Merged] = {}
        for indices in alike.values():
            part = env.shifted(self.fit.steps * len(results), len(indices))
            results.update(zip(indices, self.learned([items[index] for index in indices], part), strict=True))
        return [results[index] for index in range(len(items))]

    def learned(self, items: Sequence[MergeItem], env: MergeEnvironment) -> list[Merged]:
        """Learn the masks of items with equal shapes, whose adapters are in the basis of the merge."""
        from lorabench.merging.learn import learn
        from lorabench.merging.masks import masked_sum

        layers = env.layers.adapted(items[0].loras, items[0].pair.roles)
        self.check(layers)
        return [
            masked_sum(self, item.loras, item.pair.roles, layers, each.masks, each.parameters, each.losses)
            for item, each in zip(items, learn(self, items, layers, env), strict=True)
        ]
