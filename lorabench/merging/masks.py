"""Functions of merges that keep their adapters separate: the exact file, the parts for sampling, and means of masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

import torch

from lorabench.data.concepts import Role
from lorabench.data.pairs import Pair
from lorabench.lora.adapter import Factors, LoRA, in_basis
from lorabench.lora.effective_rank import effective_rank
from lorabench.lora.export import jointly
from lorabench.lora.layer import AllMasks, Masks, export, union
from lorabench.merging.merge import Merged, MergeEnvironment, MergeItem
from lorabench.models.layer import Layer
from lorabench.models.layer_map import text_layers
from lorabench.sampling.parts import Parts


class MaskedMerge(Protocol):
    """A merge whose result is masks and scales of its adapters: `MaskedSum` or `LearnedMasks`."""

    basis: ClassVar[str]

    @property
    def concepts(self) -> str: ...

    def scales(self, layer: Layer) -> tuple[float, ...]: ...

    def joint(self, items: Sequence[MergeItem], env: MergeEnvironment) -> list[Merged]: ...

    def optimizer_steps(self, pair: Pair) -> int: ...


def merge_by_concepts(merge: MaskedMerge, items: Sequence[MergeItem], env: MergeEnvironment) -> list[Merged]:
    """Merge all adapters of a pair at once, or average the merges of each content with each style."""
    if merge.concepts == "joint" or all(item.pair.is_single for item in items):
        return merge.joint(items, env)
    results, done = [], 0
    for item in items:
        results.append(uniform(merge, item, env.shifted(done)))
        done += merge.optimizer_steps(item.pair)
    return results


def uniform(merge: MaskedMerge, item: MergeItem, env: MergeEnvironment) -> Merged:
    """Average the merges of each content with each style. Averaging the masks averages the updates."""
    pair = item.pair
    if pair.is_single:
        return merge.joint([item], env)[0]
    couples = [tuple(pair.concepts.index(concept) for concept in couple.concepts) for couple in pair.couples]
    singles = [
        MergeItem((item.loras[c], item.loras[s]), couple) for couple, (c, s) in zip(pair.couples, couples, strict=True)
    ]
    parts = merge.joint(singles, env)
    loras = rebased(item.loras, merge.basis)
    layers = env.layers.adapted(loras, pair.roles)
    masks = {
        name: tuple(mean_masks(parts, couples, layer, k) for k in range(len(loras))) for name, layer in layers.items()
    }
    losses = {
        f"{name} {single.pair.name}": values
        for single, part in zip(singles, parts, strict=True)
        for name, values in part.losses.items()
    }
    learned = sum(part.learned_params for part in parts)
    return masked_sum(merge, loras, pair.roles, layers, masks, learned, losses)


def mean_masks(parts: Sequence[Merged], couples: Sequence[tuple[int, ...]], layer: Layer, adapter: int) -> Masks:
    """Return the mean of an adapter's masks at a layer over all couples; couples without the adapter count as zero."""
    own = [
        part.masks[layer.name][couple.index(adapter)] if part.masks else Masks(r=torch.ones(layer.ranks[adapter]))
        for part, couple in zip(parts, couples, strict=True)
        if adapter in couple and layer.name in part.file
    ]
    kinds = own[0].named() if own else ()
    return Masks(**{kind: torch.stack([mask.named()[kind] for mask in own]).sum(0) / len(couples) for kind in kinds})


def masked_sum(
    merge: MaskedMerge,
    loras: Sequence[LoRA],
    roles: Sequence[Role],
    layers: Mapping[str, Layer],
    masks: AllMasks | None,
    learned_params: int = 0,
    losses: dict[str, list[float]] | None = None,
) -> Merged:
    """Return the merge as one exact LoRA.

    Args:
        merge: The merge.
        loras: The adapters in the basis of the merge.
        roles: Role of each adapter.
        layers: The adapted layers.
        masks: Masks by layer, one per adapter; None without.
        learned_params: Number of learned parameters.
        losses: Loss terms, one value per step.
    """
    everywhere = {**layers, **text_layers(loras, roles)}
    file = export(loras, masks, {name: merge.scales(layer) for name, layer in everywhere.items()})
    return Merged(file, masks, learned_params, losses or {})


def parts_of(
    merge: MaskedMerge,
    loras: Sequence[LoRA],
    roles: Sequence[Role],
    masks: AllMasks | None,
    strength: Mapping[Role, float] | None,
) -> Parts:
    """Return the separate adapters of a merge for sampling rules.

    Args:
        merge: The merge.
        loras: The adapters before merging.
        roles: Role of each adapter.
        masks: The masks of `Merged`.
        strength: Additional scale of all adapters of a role.
    """
    used = None if strength is None else [bool(strength[role]) for role in roles]
    return Parts(rebased(loras, merge.basis, used), tuple(roles), merge.scales, masks, strength)


def rebased(loras: Sequence[LoRA], basis: str, used: Sequence[bool] | None = None) -> Sequence[LoRA]:
    """Return the adapters in factors of a basis. See `jointly` for `used`."""
    return in_basis(jointly(loras, used), basis)


def updates_at(loras: Sequence[LoRA], layer: Layer) -> list[Factors]:
    """Return each adapter's factors at a layer, with rank 0 if it does not adapt the layer."""
    nothing = Factors(torch.zeros(0, layer.in_features), torch.zeros(layer.out_features, 0))
    return [lora.get(layer.name) or lora.text.get(layer.name) or nothing for lora in loras]


def effective_ranks(adapters: Sequence[LoRA], masks: AllMasks | None) -> dict[str, list[float]]:
    """Return the effective rank of each adapter's masked update by layer, 0 if it has none."""
    ranks: dict[str, list[float]] = {}
    for layer in union(adapters):
        found = [lora.get(layer) for lora in adapters]
        masked = [each if each is None or not masks else masks[layer][k].masked(each) for k, each in enumerate(found)]
        ranks[layer] = [0.0 if each is None else effective_rank(each.down, each.up) for each in masked]
    return ranks
