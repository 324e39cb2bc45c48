"""Masks over the outputs, ranks and inputs of an adapter in one layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lorabench.lora.factors import Factors


@dataclass(frozen=True)
class Masks:
    """Mask vectors of one adapter in one layer; None stands for ones. With factors of several pairs, each has a leading
    axis [pairs].

    Args:
        o: Mask of the outputs, [out].
        r: Mask of the ranks, [rank].
        i: Mask of the inputs, [in].
    """

    o: Tensor | None = None
    r: Tensor | None = None
    i: Tensor | None = None

    def down(self, factors: Factors) -> Tensor:
        """Return D i, [rank, in]."""
        return factors.down if self.i is None else factors.down * self.i[..., None, :]

    def up(self, factors: Factors) -> Tensor:
        """Return o U, [out, rank]."""
        return factors.up if self.o is None else self.o[..., None] * factors.up

    def masked(self, factors: Factors) -> Factors:
        """Return the factors of o U diag(r) D i."""
        up = self.up(factors)
        return Factors(self.down(factors), up if self.r is None else up * self.r[..., None, :], factors.scale)

    def named(self) -> dict[str, Tensor]:
        """Return the masks that are set."""
        return {kind: tensor for kind, tensor in vars(self).items() if tensor is not None}

    def only(self) -> Tensor:
        """Return the one mask that is set."""
        [mask] = self.named().values()
        return mask

    def map(self, function: Callable[[Tensor], Tensor]) -> Masks:
        """Return masks with a function applied to each."""
        return Masks(**{kind: function(tensor) for kind, tensor in self.named().items()})


AllMasks = dict[str, tuple[Masks, ...]]  # by layer, one per adapter


def learned_params(masks: Mapping[str, Sequence[Masks]]) -> int:
    """Return the number of parameters in masks. A tensor that several layers share counts once."""
    tensors = [tensor for layer in masks.values() for mask in layer for tensor in mask.named().values()]
    return sum({id(tensor): tensor.numel() for tensor in tensors}.values())
