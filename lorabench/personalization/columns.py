"""Column separation of UnZipLoRA (arXiv 2412.04465): each of two adapters may change some outputs of a layer.

A column of an adapter is one output of its layer. Cone (Liu et al., ICML 2023, arXiv 2303.05125) rates it by the
products of its weights and their gradients; d is a gradient of the loss with respect to a factor:

    dW = o . U D        G = o . (U dD + dU D)        score_j = mean_i |dW_ji G_ji|

    step 0              all columns learn
    step 1 + n period   all columns learn; after its backward pass the columns with the highest scores are chosen
    other steps         only the chosen columns learn

Scores need the dense update of a layer, so they are computed only in the steps that choose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

import torch
from torch import Tensor

from lorabench.base import UserError
from lorabench.lora.factors import Factors
from lorabench.models.layer import Layer


def period_of(steps: int, recalibrations: int) -> int:
    """Return the number of steps from one choice of columns to the next.

    >>> period_of(600, 3), period_of(3, 3)
    (200, 2)
    """
    return max(2, ceil(steps / recalibrations))


def is_masked(step: int, period: int) -> bool:
    """Return True if only chosen columns learn in a step.

    >>> [step for step in range(9) if not is_masked(step, 4)]
    [0, 1, 5]
    """
    return step >= 2 and not chooses(step, period)


def chooses(step: int, period: int) -> bool:
    """Return True if columns are chosen after the backward pass of a step."""
    return step % period == 1


def scores(factors: Factors, gradient: Factors, o: Tensor, score: str = "mean", threshold: float = 0.0) -> Tensor:
    """Return the score of each column [out].

    Args:
        factors: U [out, rank] and D [rank, in].
        gradient: Gradients of the loss with respect to them.
        o: Merge vector [out].
        score: "mean" of the products, or "count": the share of them that exceeds `threshold`.
    """
    up = o[:, None] * factors.up
    products = (up @ factors.down) * (up @ gradient.down + o[:, None] * (gradient.up @ factors.down))
    if score == "count":
        return (products.abs() > threshold).to(products.dtype).mean(dim=1)
    return products.abs().mean(dim=1)


def choose(scores: Tensor, count: int, free: Tensor, ties: str = "stable") -> Tensor:
    """Return the columns with the highest scores, as booleans [out].

    Args:
        scores: [out].
        count: Number of chosen columns.
        free: Columns that may be chosen [out].
        ties: "stable" takes exactly `count`, the first of equal ones; "strict" takes those above the lowest of the
            `count` highest scores, which are fewer, and none if all are equal.
    """
    chosen = torch.zeros_like(free)
    order = scores.masked_fill(~free, -torch.inf).argsort(descending=True, stable=True)
    best = order[: min(count, int(free.sum()))]
    if not len(best):
        return chosen
    if ties == "strict":
        return free & (scores > scores[best[-1]])
    chosen[best] = True
    return chosen


def dedicated(
    layers: Mapping[str, Layer], rule: str, content: Sequence[str], style: Sequence[str], modules: Sequence[str] = ()
) -> dict[str, tuple[bool, bool]]:
    """Return whether the content and the style may change all columns of a layer.

    Args:
        layers: Layers that the adapters adapt.
        rule: "names" (the modules of `content` and `style`), "depth" (coarse layers for the content and fine ones for
            the style) or "none".
        content: Module paths or groups.
        style: Module paths or groups.
        modules: Modules with such layers, for the message.

    Raises:
        UserError: If a named module has no such layer.
    """
    if rule == "depth":
        return {name: (layer.depth > 0.5, layer.depth < 0.5) for name, layer in layers.items()}
    if rule == "none":
        return dict.fromkeys(layers, (False, False))
    found = []
    for role, paths in (("content", content), ("style", style)):
        inside = {path: {name for name, layer in layers.items() if layer.inside(path)} for path in paths}
        if empty := next((path for path, names in inside.items() if not names), None):
            raise UserError(
                f"method.{role}_blocks={empty} has no layer to adapt; use method.dedicated=depth, or modules out of "
                f"{', '.join(modules)}"
            )
        found.append(set().union(*inside.values()))
    return {name: (name in found[0], name in found[1]) for name in layers}
