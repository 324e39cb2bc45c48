"""The update of a linear layer as two factors, and factors that are read from a file when they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NO_STRENGTH = 1e-6  # singular values below this share of their sum are rounding errors
Shape = tuple[int, int, int]  # rank, inputs, outputs


@dataclass(frozen=True)
class Factors:
    """The update `up @ down` of one linear layer.

    Factors of several pairs have a leading axis [pairs].

    Attributes:
        down: [rank, in], called A (lora_A) in peft.
        up: [out, rank], `scale` times B (lora_B) of peft.
        scale: alpha / rank of the training, which is included in `up`, so that the update is a plain product. Rules
            that use A and B, such as peft's, divide `up` by it.
    """

    down: Tensor
    up: Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        """Return the rank."""
        return self.down.shape[-2]

    @property
    def shape(self) -> Shape:
        """Return rank, inputs and outputs."""
        return self.down.shape[-2], self.down.shape[-1], self.up.shape[-2]

    @property
    def is_zero(self) -> bool:
        """Return whether the update is zero because a factor is zero."""
        return not self.rank or any(not each.norm() and not each.any() for each in (self.up, self.down))

    @property
    def trained(self) -> tuple[Tensor, Tensor]:
        """Return A [rank, in] and B [out, rank], without `scale`. B is zero if `scale` is zero."""
        return self.down, self.up / self.scale if self.scale else self.up

    def times(self, weight: float) -> Factors:
        """Return the update times a number."""
        return self if weight == 1 else Factors(self.down, self.up * weight, self.scale * weight)

    def singular_values(self) -> Tensor:
        """Return the singular values of the update, in float64 on the CPU.

        With up = Q S and down^T = P T, the update is Q (S T^T) P^T and has the singular values of a rank x rank matrix.
        """
        factors = (factor.detach().to("cpu", torch.float64) for factor in (self.up, self.down.mT))
        left, right = (torch.linalg.qr(factor, mode="r").R for factor in factors)
        return torch.linalg.svdvals(left @ right.mT)

    def svd(self) -> Factors:
        """Return the update as orthonormal U [out, rank] and diag(s) V^T [rank, in], s descending.

        The trained factors are unique only up to an invertible matrix; these are unique. The dense update is not
        computed.
        """
        q, s = torch.linalg.qr(self.up.float()), torch.linalg.qr(self.down.float().mT)
        u, values, vt = torch.linalg.svd(q.R @ s.R.mT, full_matrices=False)
        return Factors((values[:, None] * vt @ s.Q.mT).to(self.down), (q.Q @ u).to(self.up))

    def proper_svd(self) -> Factors:
        """Return `svd` without directions whose singular value is a rounding error."""
        whole = self.svd()
        s = whole.down.norm(dim=1)
        kept = s > NO_STRENGTH * s.sum()
        return Factors(whole.down[kept], whole.up[:, kept])

    @classmethod
    def total(cls, parts: Sequence[Factors]) -> Factors:
        """Return the sum of updates of one layer in fp32. Its rank is the sum of their ranks."""
        down, up = torch.cat([each.down for each in parts]), torch.cat([each.up for each in parts], dim=1)
        return cls(down.float(), up.float(), shared_scale(parts))


def shared_scale(parts: Sequence[Factors]) -> float:
    """Return the common scale of all factors, or 1 if they differ."""
    scales = {each.scale for each in parts if each.rank}
    return scales.pop() if len(scales) == 1 else 1.0


class LazyFactors(Mapping[str, Factors]):
    """Factors by layer that are read or computed each time they are used.

    So a merge of two files has only one layer in memory at a time.
    """

    def __init__(self, shapes: Mapping[str, Shape], read: Callable[[str], Factors]):
        self.shapes, self._read = dict(sorted(shapes.items())), read

    def __getitem__(self, layer: str) -> Factors:
        if layer not in self.shapes:
            raise KeyError(layer)
        return self._read(layer)

    def __contains__(self, layer: object) -> bool:
        return layer in self.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def shapes_of(factors: Mapping[str, Factors]) -> dict[str, Shape]:
    """Return rank, inputs and outputs by layer, without reading tensors of a file."""
    return factors.shapes if isinstance(factors, LazyFactors) else {name: each.shape for name, each in factors.items()}
