"""A layer that adapters change, and groups of layers. It does not import torch, so that plans are fast."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lorabench.base import UserError
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
    """

    name: str
    in_features: int
    out_features: int
    ranks: tuple[int, ...] = ()
    roles: tuple[Role, ...] = ()
    depth: float = 0.5

    def of(self, role: Role) -> list[int]:
        """Return the indices of the adapters of a role."""
        return [k for k, each in enumerate(self.roles) if each == role]


def within(name: str, module: str) -> bool:
    """Return whether a layer is the module or a part of it."""
    return name == module or name.startswith(f"{module}.")


def modules(block: str | Sequence[str]) -> list[str]:
    """Return the module paths of a block, which is one module or several."""
    return [block] if isinstance(block, str) else list(block)


def group(layers: Iterable[str], module: str, setting: str, known: Iterable[str] = ()) -> list[str]:
    """Return the layers of a module, by exact path: "up_blocks.1" does not contain the layers of "up_blocks.10".

    Args:
        layers: Names to choose from.
        module: Module path.
        setting: Setting that names the module, for the message.
        known: Modules with layers, for the message.

    Raises:
        UserError: If the group is empty.
    """
    if found := [name for name in layers if within(name, module)]:
        return found
    hint = f"one of {', '.join(known)}" if known else "the path of a module with adapted layers"
    raise UserError(f"{setting}={module} has no layer to adapt; use {hint}")
