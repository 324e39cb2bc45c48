"""The one adapter layer: any number of LoRAs on a linear layer, masked and weighted row by row.

    y[row] = W x[row] + sum_k scale_k[row] * o_k . U_k ( r_k . D_k ( i_k . x[row] ) )

The adapters are stacked along the rank, D' = cat_k(D_k i_k) and U' = cat_k(o_k U_k), and the rank masks and the scales
scale the R = sum_k r_k numbers between them, so that K adapters cost two small products and no dense update is formed.
The same layer trains an adapter, learns the masks of a merge and samples.

Several pairs go through one batch when factors and masks have a leading axis [pairs]: each pair's share of the rows,
one after the other, then meets its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lorabench.base import UserError
from lorabench.lora.adapter import Adapter
from lorabench.lora.export import export, jointly, weighted_text
from lorabench.lora.factors import Factors
from lorabench.lora.masks import AllMasks, Masks, learned_params

__all__ = ["Adapters", "AllMasks", "MaskedLoRA", "Masks", "attach", "export", "learned_params", "weighted_text"]


class MaskedLoRA(nn.Module):
    """A frozen linear layer with K adapters stacked on the rank.

    scale: [rows or 1, R], the strength of every rank entry in each row of the next forward; None stands for ones.
    masked: whether the next forward applies the masks.
    own: input of each adapter in the next forward, [rows, ..., in] each; None stands for the layer's input.
    """

    def __init__(
        self,
        base: nn.Linear,
        factors: Sequence[Factors],
        masks: Sequence[Masks] | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        place = {"device": base.weight.device, "dtype": dtype or base.weight.dtype}
        self.base = base
        self.ranks = tuple(each.rank for each in factors)
        self.down = nn.Parameter(torch.cat([each.down.to(**place) for each in factors], dim=-2), requires_grad=False)
        self.up = nn.Parameter(torch.cat([each.up.to(**place) for each in factors], dim=-1), requires_grad=False)
        self.masks = masks
        self.scale: Tensor | None = None
        self.masked = masks is not None
        self.own: Sequence[Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x: [rows, ..., in] -> [rows, ..., out]."""
        down, up, rank = self._masked() if self.masked else (self.down, self.up, None)
        if self.own is None:
            z = product(x, down.to(x.dtype))
        else:
            parts = zip(self.own, down.to(x.dtype).split(self.ranks, dim=-2), strict=True)
            z = torch.cat([product(each.to(x.dtype), part) for each, part in parts], dim=-1)
        if rank is not None and rank.ndim == 2:
            rank = rank.repeat_interleave(len(x) // len(rank), dim=0)
        for scale in (self.scale, rank):
            if scale is not None:
                z = z * scale.to(z).view(-1, *(1,) * (x.ndim - 2), scale.shape[-1])
        return self.base(x) + product(z, up.to(x.dtype))

    def factors(self) -> list[Factors]:
        """The adapters, as views of the stacked factors."""
        downs, ups = self.down.split(self.ranks, dim=-2), self.up.split(self.ranks, dim=-1)
        return [Factors(down, up) for down, up in zip(downs, ups, strict=True)]

    def _masked(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """D', U' and the rank masks between them; what no mask touches is passed on as it is."""
        down, up, rank = self.down, self.up, None
        masked = list(zip(self.masks or (), self.factors(), strict=True))
        if any(mask.i is not None for mask, _ in masked):
            down = torch.cat([mask.down(each) for mask, each in masked], dim=-2)
        if any(mask.o is not None for mask, _ in masked):
            up = torch.cat([mask.up(each) for mask, each in masked], dim=-1)
        if any(mask.r is not None for mask, _ in masked):
            ones = (each.down.new_ones(each.down.shape[:-1]) if mask.r is None else mask.r for mask, each in masked)
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

    def __init__(self, network: nn.Module, layers: Mapping[str, MaskedLoRA]):
        self.network = network
        self.layers = dict(layers)
        self.weights: list[tuple[nn.Linear, Tensor]] = []  # that `change_base` replaced
        for layer, module in self.layers.items():
            self.network.set_submodule(layer, module)

    def rows(self, scales: Tensor | Mapping[str, Tensor], masked: bool = True) -> None:
        """Set what the next forwards use.

        scales: [rows, K], or one such a layer; a single row serves every row of the batch.
        masked: False switches the masks off, in every row.
        """
        expanded: dict[tuple[tuple[int, ...], int], Tensor] = {}  # layers of equal ranks and scales share one tensor
        for layer, module in self.layers.items():
            own = scales[layer] if isinstance(scales, Mapping) else scales
            key = module.ranks, id(own)
            if key not in expanded:
                expanded[key] = _by_rank(own, module)
            module.scale = expanded[key]
            module.masked = masked and module.masks is not None

    def loras(self) -> list[Adapter]:
        """The adapters as they stand, on their own memory."""
        stacks = {layer: module.factors() for layer, module in self.layers.items()}
        count = len(next(iter(stacks.values())))
        return [
            Adapter({layer: Factors(stack[k].down.detach().clone(), stack[k].up.detach().clone())
                  for layer, stack in stacks.items()})
            for k in range(count)
        ]  # fmt: skip

    def change_base(self, backbone: Adapter) -> None:
        """Add the update of a backbone to the frozen weights, until `detach`."""
        for layer, factors in backbone.items():
            module = self.layers[layer].base if layer in self.layers else fitting_layer(self.network, layer, [factors])
            self.weights.append((module, module.weight.data))
            module.weight.data = module.weight.data + (factors.up @ factors.down).to(module.weight)

    def detach(self) -> None:
        """Put the very layers and weights back that were there before."""
        for layer, module in self.layers.items():
            self.network.set_submodule(layer, module.base)
        for module, weight in self.weights:
            module.weight.data = weight

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()


def _by_rank(scales: Tensor, layer: MaskedLoRA) -> Tensor:
    """Repeat each adapter's scale over its ranks: [rows, K] -> [rows, R]."""
    ranks = torch.tensor(layer.ranks, device=scales.device)
    return scales.repeat_interleave(ranks, dim=1, output_size=sum(layer.ranks)).to(layer.down.device)


def attach(
    network: nn.Module,
    loras: Sequence[Adapter],
    masks: Mapping[str, Sequence[Masks]] | None = None,
    dtype: torch.dtype | None = None,
) -> Adapters:
    """Put LoRAs on a UNet, every one at full strength until `rows` says otherwise.

    masks: by layer, one a LoRA.  dtype: of the factors, where it should not be the UNet's.
    Raises UserError where a LoRA does not fit the UNet.
    """
    layers, loras = {}, jointly(loras)
    for layer in union(loras):
        present = [lora[layer] for lora in loras if layer in lora]
        base = fitting_layer(network, layer, present)
        stack = [lora.get(layer) or _nothing(present[0]) for lora in loras]
        layers[layer] = MaskedLoRA(base, stack, masks[layer] if masks else None, dtype)
    return Adapters(network, layers)


def union(loras: Sequence[Adapter]) -> list[str]:
    return sorted({layer for lora in loras for layer in lora})


def fitting_layer(network: nn.Module, layer: str, factors: Sequence[Factors]) -> nn.Linear:
    """The layer that the factors adapt; UserError where they have other widths."""
    module = linear_at(network, layer)
    for each in factors:
        if each.down.shape[-1] != module.in_features or each.up.shape[-2] != module.out_features:
            raise UserError(
                f"the LoRA maps {each.down.shape[-1]} to {each.up.shape[-2]} channels at {layer}, the model "
                f"{module.in_features} to {module.out_features}; give a LoRA trained on this model"
            )
    return module


def linear_at(network: nn.Module, layer: str) -> nn.Linear:
    try:
        module = network.get_submodule(layer)
    except AttributeError:
        module = None
    if not isinstance(module, nn.Linear):
        raise UserError(f"the LoRA adapts {layer}, which is no linear layer here; give a LoRA trained on this model")
    return module


def _nothing(like: Factors) -> Factors:
    """An adapter of rank 0: it leaves the layer alone."""
    return Factors(like.down[..., :0, :], like.up[..., :0])
