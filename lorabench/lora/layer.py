"""The one adapter layer: any number of LoRAs on a linear layer, gated and weighted row by row.

    y[row] = W x[row] + sum_k gain_k[row] * o_k . U_k ( r_k . D_k ( i_k . x[row] ) )

The adapters are stacked along the rank, D' = cat_k(D_k i_k) and U' = cat_k(o_k U_k), and the rank gates and the gains
scale the R = sum_k r_k numbers between them, so that K adapters cost two small products and no dense update is formed.
The same layer trains an adapter, learns the gates of a merge and samples.

Several pairs go through one batch when factors and gates have a leading axis [pairs]: each pair's share of the rows,
one after the other, then meets its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lorabench.base import UserError
from lorabench.lora.adapter import Factors, LoRA


@dataclass(frozen=True)
class Gates:
    """Gate vectors of one adapter at one site; None stands for ones.

    o: [out], r: [rank], i: [in]; with a leading axis [pairs] where the factors have one.
    """

    o: Tensor | None = None
    r: Tensor | None = None
    i: Tensor | None = None

    def down(self, factors: Factors) -> Tensor:
        """D i, [rank, in]."""
        return factors.down if self.i is None else factors.down * self.i[..., None, :]

    def up(self, factors: Factors) -> Tensor:
        """o U, [out, rank]."""
        return factors.up if self.o is None else self.o[..., None] * factors.up

    def gated(self, factors: Factors) -> Factors:
        """The factors of o U diag(r) D i."""
        up = self.up(factors)
        return Factors(self.down(factors), up if self.r is None else up * self.r[..., None, :])

    def named(self) -> dict[str, Tensor]:
        """The gates that are set."""
        return {kind: tensor for kind, tensor in vars(self).items() if tensor is not None}

    def only(self) -> Tensor:
        """The one gate that is set."""
        [gate] = self.named().values()
        return gate

    def map(self, function: Callable[[Tensor], Tensor]) -> Gates:
        return Gates(**{kind: function(tensor) for kind, tensor in self.named().items()})


AllGates = dict[str, tuple[Gates, ...]]  # by site, one an adapter


class GatedLoRA(nn.Module):
    """A frozen linear layer with K adapters stacked on the rank.

    gain: [rows or 1, R], the strength of every rank entry in each row of the next forward; None stands for ones.
    gated: whether the next forward applies the gates.
    """

    def __init__(
        self,
        base: nn.Linear,
        factors: Sequence[Factors],
        gates: Sequence[Gates] | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        place = {"device": base.weight.device, "dtype": dtype or base.weight.dtype}
        self.base = base
        self.ranks = tuple(each.rank for each in factors)
        self.down = nn.Parameter(torch.cat([each.down.to(**place) for each in factors], dim=-2), requires_grad=False)
        self.up = nn.Parameter(torch.cat([each.up.to(**place) for each in factors], dim=-1), requires_grad=False)
        self.gates = gates
        self.gain: Tensor | None = None
        self.gated = gates is not None

    def forward(self, x: Tensor) -> Tensor:
        """x: [rows, ..., in] -> [rows, ..., out]."""
        down, up, rank = self._gated() if self.gated else (self.down, self.up, None)
        z = product(x, down.to(x.dtype))
        if rank is not None and rank.ndim == 2:
            rank = rank.repeat_interleave(len(x) // len(rank), dim=0)
        for scale in (self.gain, rank):
            if scale is not None:
                z = z * scale.to(z).view(-1, *(1,) * (x.ndim - 2), scale.shape[-1])
        return self.base(x) + product(z, up.to(x.dtype))

    def factors(self) -> list[Factors]:
        """The adapters, as views of the stacked factors."""
        downs, ups = self.down.split(self.ranks, dim=-2), self.up.split(self.ranks, dim=-1)
        return [Factors(down, up) for down, up in zip(downs, ups, strict=True)]

    def _gated(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """D', U' and the rank gates between them; what no gate touches is passed on as it is."""
        down, up, rank = self.down, self.up, None
        gated = list(zip(self.gates or (), self.factors(), strict=True))
        if any(gate.i is not None for gate, _ in gated):
            down = torch.cat([gate.down(each) for gate, each in gated], dim=-2)
        if any(gate.o is not None for gate, _ in gated):
            up = torch.cat([gate.up(each) for gate, each in gated], dim=-1)
        if any(gate.r is not None for gate, _ in gated):
            ones = (each.down.new_ones(each.down.shape[:-1]) if gate.r is None else gate.r for gate, each in gated)
            rank = torch.cat(list(ones), dim=-1)
        return down, up, rank


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T for weight [out, in]; for [pairs, out, in], each pair's share of the rows of x with its own weight."""
    if weight.ndim == 2:
        return linear(x, weight)
    shared = x.reshape(len(weight), -1, x.shape[-1])
    return (shared @ weight.mT).view(*x.shape[:-1], weight.shape[-2])


class Adapters:
    """The adapters on a UNet; a context manager that takes them off again."""

    def __init__(self, unet: nn.Module, layers: Mapping[str, GatedLoRA]):
        self.unet = unet
        self.layers = dict(layers)
        for site, layer in self.layers.items():
            self.unet.set_submodule(site, layer)

    def rows(self, gains: Tensor | Mapping[str, Tensor], gated: bool = True) -> None:
        """Set what the next forwards use.

        gains: [rows, K], or one such a site; a single row serves every row of the batch.
        gated: False switches the gates off, in every row.
        """
        expanded: dict[tuple[tuple[int, ...], int], Tensor] = {}  # sites of equal ranks and gains share one tensor
        for site, layer in self.layers.items():
            own = gains[site] if isinstance(gains, Mapping) else gains
            key = layer.ranks, id(own)
            if key not in expanded:
                expanded[key] = _by_rank(own, layer)
            layer.gain = expanded[key]
            layer.gated = gated and layer.gates is not None

    def loras(self) -> list[LoRA]:
        """The adapters as they stand, on their own memory."""
        stacks = {site: layer.factors() for site, layer in self.layers.items()}
        count = len(next(iter(stacks.values())))
        return [
            LoRA({site: Factors(stack[k].down.detach().clone(), stack[k].up.detach().clone())
                  for site, stack in stacks.items()})
            for k in range(count)
        ]  # fmt: skip

    def detach(self) -> None:
        """Put the very layers back that were there before."""
        for site, layer in self.layers.items():
            self.unet.set_submodule(site, layer.base)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()


def _by_rank(gains: Tensor, layer: GatedLoRA) -> Tensor:
    """Repeat each adapter's gain over its ranks: [rows, K] -> [rows, R]."""
    ranks = torch.tensor(layer.ranks, device=gains.device)
    return gains.repeat_interleave(ranks, dim=1, output_size=sum(layer.ranks)).to(layer.down.device)


def attach(
    unet: nn.Module,
    loras: Sequence[LoRA],
    gates: Mapping[str, Sequence[Gates]] | None = None,
    dtype: torch.dtype | None = None,
) -> Adapters:
    """Put LoRAs on a UNet, every one at full strength until `rows` says otherwise.

    gates: by site, one a LoRA.  dtype: of the factors, where it should not be the UNet's.
    Raises UserError where a LoRA does not fit the UNet.
    """
    layers = {}
    for site in union(loras):
        present = [lora[site] for lora in loras if site in lora]
        base = fitting_layer(unet, site, present)
        stack = [lora.get(site) or _nothing(present[0]) for lora in loras]
        layers[site] = GatedLoRA(base, stack, gates[site] if gates else None, dtype)
    return Adapters(unet, layers)


def export(
    loras: Sequence[LoRA],
    gates: Mapping[str, Sequence[Gates]] | None = None,
    gains: Mapping[str, Sequence[float]] | None = None,
) -> LoRA:
    """The merge as one ordinary LoRA of rank sum_k r_k, exactly.

    down = cat_k(D_k i_k), up = cat_k(gain_k o_k U_k r_k); what has no gain is left out.
    """
    merged = {}
    for site in union(loras):
        present = [k for k, lora in enumerate(loras) if site in lora and (gains is None or gains[site][k])]
        if not present:
            continue
        gated = [gates[site][k].gated(loras[k][site]) if gates else loras[k][site] for k in present]
        downs = [each.down for each in gated]
        ups = [each.up if gains is None else each.up * gains[site][k] for k, each in zip(present, gated, strict=True)]
        merged[site] = Factors(torch.cat(downs).detach(), torch.cat(ups, dim=1).detach())
    return LoRA(merged, weighted_text(loras, gains))


def weighted_text(loras: Sequence[LoRA], gains: Mapping[str, Sequence[float]] | None) -> dict[str, Factors]:
    """The text encoders' parts, summed at their gains: no gate is about them."""
    merged = {}
    for site in sorted({site for lora in loras for site in lora.text}):
        present = [(k, lora.text[site]) for k, lora in enumerate(loras) if site in lora.text]
        ups = [each.up if gains is None else each.up * gains[site][k] for k, each in present]
        merged[site] = Factors(torch.cat([each.down for _, each in present]), torch.cat(ups, dim=1))
    return merged


def union(loras: Sequence[LoRA]) -> list[str]:
    return sorted({site for lora in loras for site in lora})


def fitting_layer(unet: nn.Module, site: str, factors: Sequence[Factors]) -> nn.Linear:
    """The layer that the factors adapt; UserError where they have other widths."""
    layer = linear_at(unet, site)
    for each in factors:
        if each.down.shape[-1] != layer.in_features or each.up.shape[-2] != layer.out_features:
            raise UserError(
                f"the LoRA maps {each.down.shape[-1]} to {each.up.shape[-2]} channels at {site}, the model "
                f"{layer.in_features} to {layer.out_features}; give a LoRA trained on this model"
            )
    return layer


def linear_at(unet: nn.Module, site: str) -> nn.Linear:
    try:
        layer = unet.get_submodule(site)
    except AttributeError:
        layer = None
    if not isinstance(layer, nn.Linear):
        raise UserError(f"the LoRA adapts {site}, which is no linear layer here; give a LoRA trained on this model")
    return layer


def _nothing(like: Factors) -> Factors:
    """An adapter of rank 0: it leaves the layer alone."""
    return Factors(like.down[..., :0, :], like.up[..., :0])


def learned_params(gates: Mapping[str, Sequence[Gates]]) -> int:
    """How many numbers the gates hold; a tensor that several sites share counts once."""
    tensors = [tensor for site in gates.values() for gate in site for tensor in gate.named().values()]
    return sum({id(tensor): tensor.numel() for tensor in tensors}.values())
