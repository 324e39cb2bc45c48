"""The plain way to learn a merge, as a reference for speed: dense updates, one UNet pass at a time.

Every adapted layer holds its updates dW_c and dW_s [out, in]. A switch on the layers says which adapter answers, every
forward forms the update it needs in full, and each teacher and each student is a pass of its own with the adapters
switched in between. This is how the public codes of ZipLoRA and DuoLoRA work; it is written from their formulas, with
nothing of our adapters and passes, and does in no place more than they do: updates have the UNet's precision (theirs
are fp32), images and prompts are encoded once, and DuoLoRA's teachers find their updates formed.

Notation: e(a, x, p) is the UNet's answer with adapter a (merged, content, style) to noised latents x under prompt p.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, mse_loss

from lorabench.lora.adapter import Factors, LoRA
from lorabench.merging.step import MergeStep, Noised
from lorabench.models.sdxl import SDXL

CONTENT_BLOCKS, STYLE_BLOCKS = ("down_blocks.2.",), ("down_blocks.1.", "up_blocks.1.")  # as DuoLoRA's code groups them


class ColumnMasked(nn.Module):
    """ZipLoRA's layer: dW_m = dW_c diag(m_c) + dW_s diag(m_s)."""

    def __init__(self, base: nn.Linear, content: Factors, style: Factors):
        super().__init__()
        self.base, self.adapter = base, "merged"
        weight = base.weight
        self.content, self.style = ((each.up.to(weight) @ each.down.to(weight)) for each in (content, style))
        self.m_c, self.m_s = (
            nn.Parameter(torch.ones(size, device=weight.device)) for size in self.sizes(content, style)
        )

    def sizes(self, content: Factors, style: Factors) -> tuple[int, int]:
        return self.base.in_features, self.base.in_features

    def merged(self) -> Tensor:
        m_c, m_s = self.m_c.to(self.content.dtype), self.m_s.to(self.style.dtype)
        return m_c * self.content + m_s * self.style

    def forward(self, x: Tensor) -> Tensor:
        update = self.merged() if self.adapter == "merged" else getattr(self, self.adapter)
        return self.base(x) + linear(x, update)


class RankMasked(ColumnMasked):
    """DuoLoRA's layer: dW_m = U_c diag(m_c) D_c + U_s diag(m_s) D_s."""

    def __init__(self, base: nn.Linear, content: Factors, style: Factors):
        super().__init__(base, content, style)
        self.factors = [Factors(each.down.to(base.weight), each.up.to(base.weight)) for each in (content, style)]

    def sizes(self, content: Factors, style: Factors) -> tuple[int, int]:
        return content.rank, style.rank

    def merged(self) -> Tensor:
        content, style = (
            each.up @ (mask.to(each.down.dtype)[:, None] * each.down)
            for each, mask in zip(self.factors, (self.m_c, self.m_s), strict=True)
        )
        return content + style


class Sequential:
    """The layers on a UNet, and the answers of one adapter at a time."""

    def __init__(self, model: SDXL, loras: tuple[LoRA, LoRA], module: type[ColumnMasked]):
        self.model = model
        content, style = loras
        self.layers: dict[str, Any] = {
            layer: module(model.unet.get_submodule(layer), content[layer], style[layer])  # pyright: ignore[reportArgumentType]
            for layer in content
        }
        self.masks = [mask for each in self.layers.values() for mask in (each.m_c, each.m_s)]

    def attach(self) -> None:
        for layer, module in self.layers.items():
            self.model.unet.set_submodule(layer, module)

    def detach(self) -> None:
        for layer, module in self.layers.items():
            self.model.unet.set_submodule(layer, module.base)

    def answer(self, adapter: str, noised: Noised, t: Tensor) -> Tensor:
        for layer in self.layers.values():
            layer.adapter = adapter
        return self.model.predict(noised.x, t, noised.prompt)


def ziplora(net: Sequential, step: MergeStep, method: Any) -> dict[str, Tensor]:
    """Four passes, two of them with gradients; the similarity is the mean over layers of mean_i |m_c,i m_s,i|."""
    content, style = step.images
    with torch.no_grad():
        e_cc = net.answer("content", content, step.t)
        e_ss = net.answer("style", style, step.t)
    e_mc = net.answer("merged", content, step.t)
    e_ms = net.answer("merged", style, step.t)
    overlaps = [(layer.m_c * layer.m_s).abs().mean() for layer in net.layers.values()]
    similarity = method.lambda_similarity * sum(overlaps) / len(overlaps)
    return {"content": mse_loss(e_mc, e_cc), "style": mse_loss(e_ms, e_ss), "similarity": similarity}


def duolora_released(net: Sequential, step: MergeStep, method: Any) -> dict[str, Tensor]:
    """Eight passes, two of them with gradients: those of ZipLoRA, and the way round of either image."""
    content, style = step.images
    with torch.no_grad():
        e_cc = net.answer("content", content, step.t)
        e_ss = net.answer("style", style, step.t)
        e_cs = net.answer("style", content.under(step.both), step.t)
        e_sc = net.answer("content", style.under(step.both), step.t)
        e_csc = net.answer("style", step.renoised(content, e_cs, content.prompt), step.t)
        e_scs = net.answer("content", step.renoised(style, e_sc, style.prompt), step.t)
    e_mc = net.answer("merged", content, step.t)
    e_ms = net.answer("merged", style, step.t)
    return {
        "content": mse_loss(e_mc, e_cc),
        "style": mse_loss(e_ms, e_ss),
        "style_cycle": method.lambda_cycle * mse_loss(e_mc, e_csc),
        "content_cycle": method.lambda_cycle * mse_loss(e_ms, e_scs),
        "prior": method.lambda_prior * layer_prior(net.layers),
    }


def layer_prior(layers: Mapping[str, Any]) -> Tensor:
    """Mean over the layers with a prior of ||m_minor||_2 - ||m_dominant||_2 + ||m_dominant||_1."""
    terms = []
    for layer, module in layers.items():
        if layer.startswith(CONTENT_BLOCKS):
            terms.append(module.m_s.norm() - module.m_c.norm() + module.m_c.abs().sum())
        elif layer.startswith(STYLE_BLOCKS):
            terms.append(module.m_c.norm() - module.m_s.norm() + module.m_s.abs().sum())
    return torch.stack(terms).mean()
