"""The one adapter layer: any number of LoRAs on a linear layer, masked and weighted row by row.

    y[row] = W x[row] + sum_k scale_k[row] * o_k . U_k ( r_k . D_k ( i_k . x[row] ) )

The adapters are stacked along the rank, D' = cat_k(D_k i_k) and U' = cat_k(o_k U_k), and the rank masks and the scales
scale the R = sum_k r_k numbers between them, so that K adapters cost two small products and no dense update is formed.
The same layer trains an adapter, learns the masks of a merge and samples.

Several pairs go through one batch when factors and masks have a leading axis [pairs]: each pair's share of the rows,
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
class Masks:
    """Gate vectors of one adapter at one layer; None stands for ones.

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

    def masked(self, factors: Factors) -> Factors:
        """The factors of o U diag(r) D i."""
        up = self.up(factors)
        return Factors(self.down(factors), up if self.r is None else up * self.r[..., None, :])

    def named(self) -> dict[str, Tensor]:
        """The masks that are set."""
        return {kind: tensor for kind, tensor in vars(self).items() if tensor is not None}

    def only(self) -> Tensor:
        """The one mask that is set."""
        [mask] = self.named().values()
        return mask

    def map(self, function: Callable[[Tensor], Tensor]) -> Masks:
        return Masks(**{kind: function(tensor) for kind, tensor in self.named().items()})


AllMasks = dict[str, tuple[Masks, ...]]  # by layer, one an adapter


class MaskedLoRA(nn.Module):
    """A frozen linear layer with K adapters stacked on the rank.

    scale: [rows or 1, R], the strength of every rank entry in each row of the next forward; None stands for ones.
    masked: whether the next forward applies the masks.
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

    def forward(self, x: Tensor) -> Tensor:
        """x: [rows, ..., in] -> [rows, ..., out]."""
        down, up, rank = self._masked() if self.masked else (self.down, self.up, None)
        z = product(x, down.to(x.dtype))
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

    def __init__(self, unet: nn.Module, layers: Mapping[str, MaskedLoRA]):
        self.unet = unet
        self.layers = dict(layers)
        for layer, module in self.layers.items():
            self.unet.set_submodule(layer, module)

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

    def loras(self) -> list[LoRA]:
        """The adapters as they stand, on their own memory."""
        stacks = {layer: module.factors() for layer, module in self.layers.items()}
        count = len(next(iter(stacks.values())))
        return [
            LoRA({layer: Factors(stack[k].down.detach().clone(), stack[k].up.detach().clone())
                  for layer, stack in stacks.items()})
            for k in range(count)
        ]  # fmt: skip

    def detach(self) -> None:
        """Put the very layers back that were there before."""
        for layer, module in self.layers.items():
            self.unet.set_submodule(layer, module.base)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()


def _by_rank(scales: Tensor, layer: MaskedLoRA) -> Tensor:
    """Repeat each adapter's scale over its ranks: [rows, K] -> [rows, R]."""
    ranks = torch.tensor(layer.ranks, device=scales.device)
    return scales.repeat_interleave(ranks, dim=1, output_size=sum(layer.ranks)).to(layer.down.device)


def attach(
    unet: nn.Module,
    loras: Sequence[LoRA],
    masks: Mapping[str, Sequence[Masks]] | None = None,
    dtype: torch.dtype | None = None,
) -> Adapters:
    """Put LoRAs on a UNet, every one at full strength until `rows` says otherwise.

    masks: by layer, one a LoRA.  dtype: of the factors, where it should not be the UNet's.
    Raises UserError where a LoRA does not fit the UNet.
    """
    layers = {}
    for layer in union(loras):
        present = [lora[layer] for lora in loras if layer in lora]
        base = fitting_layer(unet, layer, present)
        stack = [lora.get(layer) or _nothing(present[0]) for lora in loras]
        layers[layer] = MaskedLoRA(base, stack, masks[layer] if masks else None, dtype)
    return Adapters(unet, layers)


def export(
    loras: Sequence[LoRA],
    masks: Mapping[str, Sequence[Masks]] | None = None,
    scales: Mapping[str, Sequence[float]] | None = None,
) -> LoRA:
    """The merge as one ordinary LoRA of rank sum_k r_k, exactly.

    down = cat_k(D_k i_k), up = cat_k(scale_k o_k U_k r_k); what has no scale is left out.
    """
    merged = {}
    for layer in union(loras):
        present = [k for k, lora in enumerate(loras) if layer in lora and (scales is None or scales[layer][k])]
        if not present:
            continue
        masked = [masks[layer][k].masked(loras[k][layer]) if masks else loras[k][layer] for k in present]
        downs = [each.down for each in masked]
        ups = [
            each.up if scales is None else each.up * scales[layer][k] for k, each in zip(present, masked, strict=True)
        ]
        merged[layer] = Factors(torch.cat(downs).detach(), torch.cat(ups, dim=1).detach())
    return LoRA(merged, weighted_text(loras, scales))


def weighted_text(loras: Sequence[LoRA], scales: Mapping[str, Sequence[float]] | None) -> dict[str, Factors]:
    """The text encoders' parts, summed at their scales: no mask is about them."""
    merged = {}
    for layer in sorted({layer for lora in loras for layer in lora.text}):
        present = [(k, lora.text[layer]) for k, lora in enumerate(loras) if layer in lora.text]
        ups = [each.up if scales is None else each.up * scales[layer][k] for k, each in present]
        merged[layer] = Factors(torch.cat([each.down for _, each in present]), torch.cat(ups, dim=1))
    return merged


def union(loras: Sequence[LoRA]) -> list[str]:
    return sorted({layer for lora in loras for layer in lora})


def fitting_layer(unet: nn.Module, layer: str, factors: Sequence[Factors]) -> nn.Linear:
    """The layer that the factors adapt; UserError where they have other widths."""
    module = linear_at(unet, layer)
    for each in factors:
        if each.down.shape[-1] != module.in_features or each.up.shape[-2] != module.out_features:
            raise UserError(
                f"the LoRA maps {each.down.shape[-1]} to {each.up.shape[-2]} channels at {layer}, the model "
                f"{module.in_features} to {module.out_features}; give a LoRA trained on this model"
            )
    return module


def linear_at(unet: nn.Module, layer: str) -> nn.Linear:
    try:
        module = unet.get_submodule(layer)
    except AttributeError:
        module = None
    if not isinstance(module, nn.Linear):
        raise UserError(f"the LoRA adapts {layer}, which is no linear layer here; give a LoRA trained on this model")
    return module


def _nothing(like: Factors) -> Factors:
    """An adapter of rank 0: it leaves the layer alone."""
    return Factors(like.down[..., :0, :], like.up[..., :0])


def learned_params(masks: Mapping[str, Sequence[Masks]]) -> int:
    """How many numbers the masks hold; a tensor that several layers share counts once."""
    tensors = [tensor for layer in masks.values() for mask in layer for tensor in mask.named().values()]
    return sum({id(tensor): tensor.numel() for tensor in tensors}.values())
