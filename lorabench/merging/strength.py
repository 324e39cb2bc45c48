"""Merging with scaled adapters, for merges that do not keep their adapters separate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lorabench.data.concepts import Role
from lorabench.data.pairs import Pair
from lorabench.lora.adapter import Factors, LoRA
from lorabench.merging.merge import Merge, Merged, MergeEnvironment, MergeItem


def merged_at_strength(
    merge: Merge, loras: Sequence[LoRA], pair: Pair, strength: Mapping[Role, float], env: MergeEnvironment
) -> Merged:
    """Merge a pair again with the same random draws, after scaling all adapters of a role.

    Args:
        merge: The merge.
        loras: Adapters of the pair.
        pair: The pair.
        strength: Scale by role.
        env: Model and seed.
    """
    weaker = tuple(scaled(lora, strength[role]) for lora, role in zip(loras, pair.roles, strict=True))
    [result] = merge.merge_pairs([MergeItem(weaker, pair)], env)
    return result


def scaled(lora: LoRA, strength: float) -> LoRA:
    """Return a LoRA multiplied by a number."""

    def times(parts: Mapping[str, Factors]) -> dict[str, Factors]:
        return {name: Factors(each.down, each.up * strength) for name, each in parts.items()}

    return LoRA(times(lora), times(lora.text), backbone=lora.backbone, metadata=lora.metadata)
