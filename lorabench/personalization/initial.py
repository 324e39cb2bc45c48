"""Initial factors of a LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lorabench.base import UserError, seed_of
from lorabench.lora.adapter import Factors, LoRA
from lorabench.models.layer import Layer


def initial(layers: Mapping[str, Layer], rank: int, seed: int) -> LoRA:
    """Return factors with normal `down` of standard deviation 1 / rank and zero `up` (peft's "gaussian")."""
    factors = {}
    for name, layer in layers.items():
        draw = torch.Generator().manual_seed(seed_of(seed, name))
        down = torch.randn(rank, layer.in_features, generator=draw) / rank
        factors[name] = Factors(down, torch.zeros(layer.out_features, rank))
    return LoRA(factors)


def random_factors(layers: Mapping[str, Layer], rank: int, seed: int, up: float = 1.0) -> LoRA:
    """Return factors that are both normal, with standard deviation 1 / rank and up / rank.

    UnZipLoRA (arXiv 2412.04465) starts in this way, because scores of columns are zero if `up` is. The update of a
    layer has the standard deviation up / rank^1.5.
    """
    factors = {}
    for name, start in initial(layers, rank, seed).items():
        draw = torch.Generator().manual_seed(seed_of(seed, name, "up"))
        factors[name] = Factors(start.down, torch.randn(start.up.shape, generator=draw) * (up / rank))
    return LoRA(factors)


def initial_text(layers: Mapping[str, Layer], rank: int, seed: int) -> LoRA:
    """Return the same for layers of text encoders; the draws of an encoder are seeded by its name."""
    factors: dict[str, Factors] = {}
    for encoder in dict.fromkeys(name.partition(".")[0] for name in layers):
        head = f"{encoder}."
        own = {name.removeprefix(head): layer for name, layer in layers.items() if name.startswith(head)}
        start = initial(own, rank, seed_of(seed, encoder))
        factors |= {head + name: each for name, each in start.items()}
    return LoRA({}, factors)


def core(denoiser: nn.Module, layers: Mapping[str, Layer], rank: int) -> LoRA:
    """Return the start of QR-LoRA (arXiv 2507.04599): `up` is a basis of the layer's main output directions.

        W = U S V^T,    Q R = U_r S_r V_r^T    (r: rank;  Q [out, r], R [r, in])

    `up` = Q, `down` = 0. QR-LoRA's W - QR + Q (R + dR) is W + Q dR, a LoRA of which only `down` learns.

    Raises:
        UserError: If a layer has fewer dimensions than the rank.
    """
    factors = {}
    for name, layer in layers.items():
        if rank > (most := min(layer.in_features, layer.out_features)):
            raise UserError(f"lora.rank={rank} is more than {name} has; use lora.rank={most}")
        weight: Any = denoiser.get_submodule(name).weight
        u, s, vt = torch.linalg.svd(weight.detach().float().cpu(), full_matrices=False)
        q, _ = torch.linalg.qr((u[:, :rank] * s[:rank]) @ vt[:rank])
        factors[name] = Factors(torch.zeros(rank, layer.in_features), q[:, :rank].contiguous())
    return LoRA(factors)


def disjoint(layers: Mapping[str, Layer], rank: int, seed: int, count: int = 2) -> list[LoRA]:
    """Return `count` adapters that read different features: `up` zero, `down` rows of one orthonormal basis.

    PairCustomization (arXiv 2405.01536): layers of equal width share a random basis. The first adapter has its first
    `rank` rows, the second the next `rank` rows.

    Raises:
        UserError: If a layer is too narrow.
    """
    bases: dict[int, Tensor] = {}
    adapters: list[dict[str, Factors]] = [{} for _ in range(count)]
    for name, layer in layers.items():
        width = layer.in_features
        if count * rank > width:
            raise UserError(f"{count} adapters of rank {rank} do not fit {name}; use lora.rank={width // count}")
        if width not in bases:
            draw = torch.Generator().manual_seed(seed_of("basis", width, seed))
            bases[width] = torch.linalg.qr(torch.randn(width, width, generator=draw))[0]
        for k, factors in enumerate(adapters):
            down = bases[width][k * rank : (k + 1) * rank]
            factors[name] = Factors(down.clone(), torch.zeros(layer.out_features, rank))
    return [LoRA(factors) for factors in adapters]
