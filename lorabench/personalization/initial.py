"""Which layers of a text encoder a LoRA is trained on, and the factors that a LoRA starts from."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lorabench.base import UserError, seed_of
from lorabench.lora.adapter import Factors, LoRA

TEXT_TARGET = re.compile(r".*\.self_attn\.(q|k|v|out)_proj")


def text_layers(encoder: nn.Module) -> dict[str, nn.Linear]:
    """The attention projections of a CLIP text encoder, what diffusers' scripts adapt."""
    return {
        name: layer
        for name, layer in encoder.named_modules()
        if TEXT_TARGET.fullmatch(name) and isinstance(layer, nn.Linear)
    }


def initial(layers: Mapping[str, nn.Linear], rank: int, seed: int) -> LoRA:
    """Where training starts: `down` normal with standard deviation 1 / rank, `up` zero (peft's "gaussian")."""
    factors = {}
    for layer, module in layers.items():
        draw = torch.Generator().manual_seed(seed_of(seed, layer))
        down = torch.randn(rank, module.in_features, generator=draw) / rank
        factors[layer] = Factors(down, torch.zeros(module.out_features, rank))
    return LoRA(factors)


def core(layers: Mapping[str, nn.Linear], rank: int) -> LoRA:
    """Where QR-LoRA (arXiv 2507.04599) starts: `up` an orthonormal basis Q of what the layer's own weight does most,
    `down` zero.

        W = U S V^T,    Q R = U_r S_r V_r^T    (r: rank;  Q [out, r], R [r, in])

    Its W - QR + Q (R + dR) is W + Q dR, a LoRA whose `down` alone learns. UserError where a layer has fewer dimensions.
    """
    factors = {}
    for layer, module in layers.items():
        if rank > min(module.weight.shape):
            raise UserError(f"lora.rank={rank} is more than {layer} has; type lora.rank={min(module.weight.shape)}")
        u, s, vt = torch.linalg.svd(module.weight.detach().float().cpu(), full_matrices=False)
        q, _ = torch.linalg.qr((u[:, :rank] * s[:rank]) @ vt[:rank])
        factors[layer] = Factors(torch.zeros(rank, module.in_features), q[:, :rank].contiguous())
    return LoRA(factors)


def disjoint(layers: Mapping[str, nn.Linear], rank: int, seed: int, count: int = 2) -> list[LoRA]:
    """Where `count` adapters start that cannot read the same features: `up` zero, `down` rows of one orthonormal basis.

    PairCustomization (arXiv 2405.01536): layers of equal width share a random basis, of which the first adapter has the
    first `rank` rows, the next the next. UserError where a layer is too narrow.
    """
    bases: dict[int, Tensor] = {}
    adapters: list[dict[str, Factors]] = [{} for _ in range(count)]
    for layer, module in layers.items():
        width = module.in_features
        if count * rank > width:
            raise UserError(f"{count} adapters of rank {rank} do not fit {layer}; type lora.rank={width // count}")
        if width not in bases:
            draw = torch.Generator().manual_seed(seed_of("basis", width, seed))
            bases[width] = torch.linalg.qr(torch.randn(width, width, generator=draw))[0]
        for k, factors in enumerate(adapters):
            down = bases[width][k * rank : (k + 1) * rank]
            factors[layer] = Factors(down.clone(), torch.zeros(module.out_features, rank))
    return [LoRA(factors) for factors in adapters]
