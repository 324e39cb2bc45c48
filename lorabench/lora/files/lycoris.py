"""LyCORIS updates that are products of factors: LoHa and LoKr, as exact factors of a higher rank.

    LoHa   dW = s (A1 B1) * (A2 B2)        elementwise; rank r^2:  (A1 B1) * (A2 B2) = (A1 x A2) (B1 x B2), columnwise
    LoKr   dW = s kron(W1, W2)             rank r1 r2, where W = A B, or W itself

with s = alpha / rank. Sources: LyCORIS 3.0, lycoris/modules/loha.py and lokr.py; ComfyUI, comfy/weight_adapter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from lorabench.lora.factors import Factors

KEY = re.compile(r"(?P<stem>.+)\.(?P<part>hada_w[12]_[ab]|lokr_w[12](?:_[ab])?)")
LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")

KINDS = {"hada": "LoHa", "lokr": "LoKr"}

Shape = tuple[int, ...]


def split(key: str) -> tuple[str, str] | None:
    """Split a key into (stem, part); return None if it is not one of LyCORIS."""
    match = KEY.fullmatch(key)
    return match and (match["stem"], match["part"])


def kind(parts: Iterable[str]) -> str | None:
    """Return "LoHa" or "LoKr" from the names of a layer's parts; None for a plain LoRA."""
    return next((KINDS[part[:4]] for part in parts if part[:4] in KINDS), None)


def whole(parts: Mapping[str, object]) -> bool:
    """Return whether a layer has all parts of a LoHa or of a LoKr."""
    sides = [f"lokr_w{side}" in parts or {f"lokr_w{side}_a", f"lokr_w{side}_b"} <= parts.keys() for side in (1, 2)]
    return all(part in parts for part in LOHA) or all(sides)


def shape(shapes: Mapping[str, Shape]) -> tuple[int, int, int]:
    """Return rank, inputs and outputs of the factors from the shapes of the parts."""
    if LOHA[0] in shapes:
        return shapes[LOHA[1]][0] * shapes[LOHA[3]][0], shapes[LOHA[1]][1], shapes[LOHA[0]][0]
    outs, ins, ranks = 1, 1, 1
    for side in (1, 2):
        if f"lokr_w{side}" in shapes:
            height, width = shapes[f"lokr_w{side}"][:2]
            rank = min(height, width)
        else:
            height, rank = shapes[f"lokr_w{side}_a"][:2]
            width = shapes[f"lokr_w{side}_b"][1]
        outs, ins, ranks = outs * height, ins * width, ranks * rank
    return ranks, ins, outs


def factors(tensors: Mapping[str, Tensor]) -> Factors:
    """Return exact factors of an update in fp32, with alpha / rank in `up`."""
    parts = {name: tensor.float() for name, tensor in tensors.items()}
    if LOHA[0] in parts:
        a1, b1, a2, b2 = (parts[name] for name in LOHA)
        scale = _scale(parts, len(b1))
        up = (a1[:, :, None] * a2[:, None, :]).flatten(1)
        down = (b1[:, None, :] * b2[None, :, :]).flatten(0, 1)
        return Factors(down, up * scale)
    sides, rank = [], None
    for side in (1, 2):
        a, b = (parts.get(f"lokr_w{side}_{letter}") for letter in "ab")
        if a is not None and b is not None:
            rank = len(b)
        else:
            a, b = _full_rank(parts[f"lokr_w{side}"])
        sides.append((a, b))
    scale = 1.0 if rank is None else _scale(parts, rank)  # alpha of two whole matrices means nothing
    (a1, b1), (a2, b2) = sides
    return Factors(torch.kron(b1, b2), torch.kron(a1, a2) * scale)


def _full_rank(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return a matrix as A B without arithmetic: one of them is the identity."""
    height, width = matrix.shape
    return (matrix, torch.eye(width)) if width <= height else (torch.eye(height), matrix)


def _scale(parts: Mapping[str, Tensor], rank: int) -> float:
    return float(parts["alpha"]) / rank if "alpha" in parts else 1.0
