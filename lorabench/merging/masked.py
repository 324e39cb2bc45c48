"""Merges that scale and mask the adapters without optimizer steps.

    dW_m = sum_k s_k * o_k . U_k diag(r_k) D_k diag(i_k)

The scales are constant, so one LoRA file of rank sum_k r_k expresses the merge exactly. A scale that changes during
sampling is a sampling rule, see lorabench.sampling.rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lorabench.config.components import overrides
from lorabench.config.settings import setting
from lorabench.merging.merge import Merge, Merged, MergeEnvironment, MergeItem
from lorabench.models.layer import Layer

if TYPE_CHECKING:
    from torch import Tensor

    from lorabench.data.concepts import Role
    from lorabench.lora.adapter import Factors, LoRA
    from lorabench.lora.layer import AllMasks, Masks
    from lorabench.sampling.parts import Parts

CONCEPTS = ("joint", "uniform")


def parts_of_masked(
    self: Any,
    loras: Sequence[LoRA],
    roles: Sequence[Role],
    masks: AllMasks | None,
    strength: Mapping[Role, float] | None = None,
) -> Parts:
    """Implement `Merge.parts` for the kinds of merges that keep their adapters apart; `self` is a `MaskedMerge`."""
    from lorabench.merging.masks import parts_of

    return parts_of(self, loras, roles, masks, strength)


@dataclass(frozen=True, kw_only=True)
class MaskedSum(Merge):
    """The sum of scaled and masked adapters.

    Args:
        concepts: With several subjects or styles, "joint" merges all adapters at once and "uniform" averages the merges
            of each subject with each style, our interpretation of DuoLoRA's "uniform-weight merging".

    Attributes:
        basis: Factors that rank masks act on, "raw" or "svd".
    """

    basis: ClassVar[str] = "raw"
    parts = parts_of_masked

    concepts: str = setting("joint", options=CONCEPTS)

    @property
    def is_plain(self) -> bool:
        """Return True for the plain sum: neither scales nor masks."""
        return not overrides(self, MaskedSum, "scales", "masks")

    def scales(self, layer: Layer) -> tuple[float, ...]:
        """Return the scale of each adapter at a layer of the denoiser or of a text encoder."""
        return (1.0,) * len(layer.ranks)

    def masks(
        self, updates: Sequence[Factors], layer: Layer, seed: int, moments: Tensor | None
    ) -> tuple[Masks, ...] | None:
        """Return the masks of each adapter at a layer of the denoiser; None is without masks.

        Args:
            updates: Factors of each adapter, of rank 0 if it does not adapt the layer.
            seed: Seed of the pair; a random draw is seeded with it and the name of the layer.
            moments: Input moments that `activations` asks for, [adapters, n, n].
        """
        return None

    def merge_pairs(self, items: Sequence[MergeItem], env: MergeEnvironment) -> list[Merged]:
        from lorabench.merging.masks import merge_by_concepts

        return merge_by_concepts(self, items, env)

    def joint(self, items: Sequence[MergeItem], env: MergeEnvironment) -> list[Merged]:
        """Merge all adapters of each item at once."""
        from lorabench.lora.layer import learned_params
        from lorabench.merging.masks import masked_sum, rebased

        results = []
        for item in items:
            loras, roles = rebased(item.loras, self.basis), item.pair.roles
            layers = env.layers.adapted(loras, roles)
            self.check(layers)
            masks = self.all_masks(MergeItem(tuple(loras), item.pair), layers, env)
            learned = learned_params(masks or {}) if self.activations else 0
            results.append(masked_sum(self, loras, roles, layers, masks, learned))
        return results

    def all_masks(self, item: MergeItem, layers: Mapping[str, Layer], env: MergeEnvironment) -> AllMasks | None:
        """Return the masks by layer; None if no layer has any."""
        from lorabench.lora.layer import Masks
        from lorabench.merging.masks import updates_at

        if not overrides(self, MaskedSum, "masks"):
            return None
        moments: Mapping[str, Tensor] = {}
        if self.activations is not None:
            from lorabench.merging.moments import collect

            moments = collect(self.activations, item, layers, env)
        seed, masks = item.seed(env.seed), {}
        for name, layer in layers.items():
            found = self.masks(updates_at(item.loras, layer), layer, seed, moments.get(name))
            masks[name] = found or tuple(Masks() for _ in layer.ranks)
        return masks
