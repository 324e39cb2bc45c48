"""Where two adapters change the same layer, how strong each is there, and which directions they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorabench.lora.adapter import Adapter
from lorabench.lora.factors import Factors


@dataclass(frozen=True)
class Meeting:
    """Two updates of one layer.

    Attributes:
        content, style: Frobenius norms; 0 if an adapter leaves the layer as it is.
        cosine: Cosine of the updates as vectors.
        outputs, inputs: Cosines of the principal angles of the spaces that both write to and read from, descending.
    """

    layer: str
    content: float
    style: float
    cosine: float = 0.0
    outputs: tuple[float, ...] = ()
    inputs: tuple[float, ...] = ()

    @property
    def shared(self) -> float:
        """Mean squared cosine of the principal angles of outputs and inputs: 0 orthogonal, 1 one space in the other."""
        angles = [*self.outputs, *self.inputs]
        return sum(each**2 for each in angles) / len(angles) if angles else 0.0


def meetings(contents: Sequence[Adapter], styles: Sequence[Adapter]) -> list[Meeting]:
    """Return all layers that any adapter changes, those of text encoders too, sorted by name."""
    sides = [[*map(_parts, contents)], [*map(_parts, styles)]]
    layers = sorted({layer for side in sides for part in side for layer in part})
    return [_meeting(layer, *([part[layer] for part in side if layer in part] for side in sides)) for layer in layers]


def _parts(adapter: Adapter) -> Mapping[str, Factors]:
    return {**adapter, **adapter.text}


def _meeting(layer: str, content: Sequence[Factors], style: Sequence[Factors]) -> Meeting:
    bases = [_basis(side) for side in (content, style)]
    norms = [0.0 if basis is None else float(basis.core.norm()) for basis in bases]
    first, second = bases
    if first is None or second is None or not all(norms):
        return Meeting(layer, *norms)
    outputs, inputs = first.left.mT @ second.left, first.right.mT @ second.right
    inner = (first.core * (outputs @ second.core @ inputs.mT)).sum()
    angles = (tuple(torch.linalg.svdvals(each).clamp(max=1).tolist()) for each in (outputs, inputs))
    return Meeting(layer, *norms, float(inner) / (norms[0] * norms[1]), *angles)


@dataclass(frozen=True)
class _Basis:
    """An update left @ core @ right^T with orthonormal columns left [out, r] and right [in, r]."""

    left: Tensor
    core: Tensor
    right: Tensor


def _basis(parts: Sequence[Factors]) -> _Basis | None:
    """The basis of a sum of updates; None without one."""
    if not parts or (total := Factors.total(parts)).is_zero:
        return None
    whole = total.proper_svd()
    s = whole.down.double().norm(dim=1)
    return _Basis(whole.up.double(), torch.diag(s), (whole.down.double() / s[:, None]).mT)
