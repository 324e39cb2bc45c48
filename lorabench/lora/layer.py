"""The adapter layer: any number of LoRAs on a linear layer, with masks and a scale per row.

    y[row] = W x[row] + sum_k scale_k[row] * o_k . U_k ( r_k . D_k ( i_k . x[row] ) )

The adapters are stacked along the rank, D' = cat_k(D_k i_k) and U' = cat_k(o_k U_k). Rank masks and scales multiply the
R = sum_k r_k numbers between them. So K adapters cost two small products, and no dense update is computed. The same
layer is used to train an adapter, to learn the masks of a merge, and to sample.

Several pairs can be in one batch. Then factors and masks have a leading axis [pairs], and rows are ordered by pair.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    """A frozen linear layer with K stacked adapters.

    Attributes:
        scale: Scale of every rank entry in each row of the next forward pass, [rows or 1, R]; None: ones.
        masked: Whether the next forward pass applies the masks.
        own: Input of each adapter in the next forward pass, [rows, ..., in] each; None: the layer's input.
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
        """Map x [rows, ..., in] to [rows, ..., out]."""
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
        """Return the adapters as views of the stacked factors."""
        downs, ups = self.down.split(self.ranks, dim=-2), self.up.split(self.ranks, dim=-1)
        return [Factors(down, up) for down, up in zip(downs, ups, strict=True)]

    def _masked(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return D', U' and the rank masks between them. Factors without masks are returned as they are."""
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
    """Return x W^T for a weight [out, in], or for weights [pairs, out, in], which multiply the rows of their pair."""
    if weight.ndim == 2:
        return linear(x, weight)
    shared = x.reshape(len(weight), -1, x.shape[-1])
    return (shared @ weight.mT).view(*x.shape[:-1], weight.shape[-2])


class Adapters:
    """The adapters on a denoiser. As a context manager, it removes them at the end.

    Args:
        network: The denoiser.
        layers: The adapted layers, by module path.
    """

    def __init__(self, network: nn.Module, layers: Mapping[str, MaskedLoRA]):
        self.network = network
        self.layers = dict(layers)
        for layer, module in self.layers.items():
            self.network.set_submodule(layer, module)

    def rows(self, scales: Tensor | Mapping[str, Tensor], masked: bool = True) -> None:
        """Set the scales and masks of the next forward passes.

        Args:
            scales: [rows, K], or one per layer. A single row applies to every row of the batch.
            masked: Whether masks apply.
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
        """Return copies of the adapters with their current values."""
        stacks = {layer: module.factors() for layer, module in self.layers.items()}
        count = len(next(iter(stacks.values())))
        return [
            Adapter({layer: Factors(stack[k].down.detach().clone(), stack[k].up.detach().clone())
                  for layer, stack in stacks.items()})
            for k in range(count)
        ]  # fmt: skip

    def detach(self) -> None:
        """Restore the original layers."""
        for layer, module in self.layers.items():
            self.network.set_submodule(layer, module.base)

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
    """Put LoRAs on a denoiser, each with scale 1 until `rows` sets others.

    Args:
        network: The denoiser.
        loras: The LoRAs.
        masks: Masks by layer, one per LoRA.
        dtype: Data type of the factors; None: that of the denoiser.

    Raises:
        UserError: If a LoRA does not fit the denoiser.
    """
    layers, loras = {}, jointly(loras)
    for layer in union(loras):
        present = [lora[layer] for lora in loras if layer in lora]
        base = fitting_layer(network, layer, present)
        stack = [lora.get(layer) or _nothing(present[0]) for lora in loras]
        layers[layer] = MaskedLoRA(base, stack, masks[layer] if masks else None, dtype)
    return Adapters(network, layers)


@contextmanager
def changed_weights(network: nn.Module, backbone: Adapter | None) -> Iterator[None]:
    """Add the update of a backbone to the frozen weights within the block; None changes nothing.

    Raises:
        UserError: If the backbone does not fit the network.
    """
    kept: list[tuple[nn.Linear, Tensor]] = []
    try:
        for layer, factors in (backbone or {}).items():
            module = fitting_layer(network, layer, [factors])
            kept.append((module, module.weight.data))
            update = factors.up.to(module.weight.device) @ factors.down.to(module.weight.device)
            module.weight.data = (module.weight.data + update).to(module.weight.dtype)
        yield
    finally:
        for module, weight in kept:
            module.weight.data = weight


def union(loras: Sequence[Adapter]) -> list[str]:
    """Return the sorted names of all layers that any LoRA adapts."""
    return sorted({layer for lora in loras for layer in lora})


def fitting_layer(network: nn.Module, layer: str, factors: Sequence[Factors]) -> nn.Linear:
    """Return the layer that factors adapt.

    Raises:
        UserError: If there is no such linear layer, or its widths differ.
    """
    module = linear_at(network, layer)
    for each in factors:
        if each.down.shape[-1] != module.in_features or each.up.shape[-2] != module.out_features:
            raise UserError(
                f"the LoRA maps {each.down.shape[-1]} to {each.up.shape[-2]} channels at {layer}, the model "
                f"{module.in_features} to {module.out_features}; give a LoRA trained on this model"
            )
    return module


def linear_at(network: nn.Module, layer: str) -> nn.Linear:
    """Return the linear layer at a module path; raises UserError if there is none."""
    try:
        module = network.get_submodule(layer)
    except AttributeError:
        module = None
    if isinstance(module, nn.Conv2d):
        raise UserError(f"the LoRA adapts the convolution {layer}, which is not run here; use task=merge method=direct")
    if not isinstance(module, nn.Linear):
        raise UserError(f"the LoRA adapts {layer}, which is not a linear layer here; give a LoRA trained on this model")
    return module


def _nothing(like: Factors) -> Factors:
    """Return factors of rank 0, which do not change a layer."""
    return Factors(like.down[..., :0, :], like.up[..., :0])
