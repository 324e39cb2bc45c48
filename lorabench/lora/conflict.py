"""Conflicts of two adapters: the layers that both change, their norms there, and the directions that they share."""

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
        layer: Name of the layer.
        content: Frobenius norm of the content update; 0 if there is none.
        style: The same for the style.
        cosine: Cosine of the updates as vectors.
        outputs: Cosines of the principal angles between the spaces that both write to, descending.
        inputs: The same for the spaces that both read from.
    """

    layer: str
    content: float
    style: float
    cosine: float = 0.0
    outputs: tuple[float, ...] = ()
    inputs: tuple[float, ...] = ()

    @property
    def shared(self) -> float:
        """Return the mean squared cosine of the principal angles: 0 if orthogonal, 1 if one contains the other."""
        angles = [*self.outputs, *self.inputs]
        return sum(each**2 for each in angles) / len(angles) if angles else 0.0


def meetings(contents: Sequence[Adapter], styles: Sequence[Adapter]) -> list[Meeting]:
    """Return all layers that any adapter changes, including text encoders, sorted by name."""
    sides = [[*map(_parts, contents)], [*map(_parts, styles)]]
    layers = sorted({layer for side in sides for part in side for layer in part})
    return [_meeting(layer, *([part[layer] for part in side if layer in part] for side in sides)) for layer in layers]


def _parts(adapter: Adapter) -> Mapping[str, Factors]:
    return {**adapter, **adapter.text}


def _meeting(layer: str, content: Sequence[Factors], style: Sequence[Factors]) -> Meeting:
    first, second = _basis(content), _basis(style)
    norms = [0.0 if basis is None else float(basis.core.norm()) for basis in (first, second)]
    if first is None or second is None or not all(norms):
        return Meeting(layer, norms[0], norms[1])
    outputs, inputs = first.left.mT @ second.left, first.right.mT @ second.right
    inner = (first.core * (outputs @ second.core @ inputs.mT)).sum()
    cosine = float(inner) / (norms[0] * norms[1])
    return Meeting(layer, norms[0], norms[1], cosine, _cosines(outputs), _cosines(inputs))


def _cosines(product: Tensor) -> tuple[float, ...]:
    return tuple(torch.linalg.svdvals(product).clamp(max=1).tolist())


@dataclass(frozen=True)
class _Basis:
    """An update left @ core @ right^T with orthonormal columns left [out, r] and right [in, r]."""

    left: Tensor
    core: Tensor
    right: Tensor


def _basis(parts: Sequence[Factors]) -> _Basis | None:
    """Return the basis of a sum of updates; None if it is zero."""
    if not parts or (total := Factors.total(parts)).is_zero:
        return None
    whole = total.proper_svd()
    s = whole.down.double().norm(dim=1)
    return _Basis(whole.up.double(), torch.diag(s), (whole.down.double() / s[:, None]).mT)
