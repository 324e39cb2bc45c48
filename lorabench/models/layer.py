"""A layer that adapters change, and groups of layers. It does not import torch, so that plans are fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorabench.data.concepts import Role


@dataclass(frozen=True)
class Layer:
    """A linear layer of a model.

    Args:
        name: Module path, "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q".
        in_features: Width of the input.
        out_features: Width of the output.
        ranks: Rank of each adapter here; 0 if it does not adapt the layer.
        roles: Role of each adapter.
        depth: Between 0 (finest) and 1 (coarsest), as the family defines it; 0.5 outside the blocks.
        groups: Names of the groups it belongs to besides its modules, such as "image" or "early"; none on SDXL.
    """

    name: str
    in_features: int
    out_features: int
    ranks: tuple[int, ...] = ()
    roles: tuple[Role, ...] = ()
    depth: float = 0.5
    groups: frozenset[str] = frozenset()

    def of(self, role: Role) -> list[int]:
        """Return the indices of the adapters of a role."""
        return [k for k, each in enumerate(self.roles) if each == role]

    def inside(self, block: str) -> bool:
        """Return True if the layer is in a block: the path of a module, or the name of a group."""
        return block in self.groups or within(self.name, block)


def within(name: str, module: str) -> bool:
    """Return whether a layer is the module or a part of it."""
    return name == module or name.startswith(f"{module}.")


def modules(block: str | Sequence[str]) -> list[str]:
    """Return the module paths of a block, which is one module or several."""
    return [block] if isinstance(block, str) else list(block)
