"""An adapted layer, as merges and sampling rules see it. Imports no torch, so that plans stay quick."""

from dataclasses import dataclass

from lorabench.data.pairs import Role


@dataclass(frozen=True)
class Layer:
    """An adapted layer of the live UNet.

    name: module path, "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q".
    ranks: rank of each adapter here (0 where an adapter leaves the layer alone).
    roles: whether each adapter is a content or a style.
    depth: 0 at the highest resolution with attention, 1 at the lowest.
    """

    name: str
    in_features: int
    out_features: int
    ranks: tuple[int, ...]
    roles: tuple[Role, ...]
    depth: float

    def of(self, role: Role) -> list[int]:
        """Which adapters have this role."""
        return [k for k, each in enumerate(self.roles) if each == role]


def within(name: str, block: str) -> bool:
    return name == block or name.startswith(f"{block}.")
