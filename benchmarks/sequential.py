"""A plain implementation of learned merges as a speed reference: dense updates, one UNet pass at a time.

Each adapted layer holds its updates dW_c and dW_s [out, in] and a switch that selects the active adapter. Every forward
pass forms the dense update, and each teacher and each student is a separate pass with another active adapter. The
public implementations of ZipLoRA and DuoLoRA work this way. This one is written from their formulas and shares neither
adapters nor passes with the product. It omits parts that would only slow it down: updates have the UNet's precision
(theirs are fp32), images and prompts are encoded once, and DuoLoRA's teachers use updates formed in advance.

Notation: e(a, x, p) is the UNet's prediction with adapter a (merged, content, style) for noised latents x and prompt p.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, mse_loss

from lorabench.lora.adapter import Factors, LoRA
from lorabench.merging.step import MergeStep, Noised
from lorabench.models.sdxl.model import SDXL

CONTENT_BLOCKS, STYLE_BLOCKS = ("down_blocks.2.",), ("down_blocks.1.", "up_blocks.1.")  # as in DuoLoRA's code


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
        """Return the numbers of mask entries of content and style."""
        return self.base.in_features, self.base.in_features

    def merged(self) -> Tensor:
        """Return the merged dense update [out, in]."""
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
    """The masked layers on a UNet, and predictions with one active adapter."""

    def __init__(self, model: SDXL, loras: tuple[LoRA, LoRA], module: type[ColumnMasked]):
        self.model = model
        content, style = loras
        self.layers: dict[str, Any] = {
            layer: module(model.unet.get_submodule(layer), content[layer], style[layer])  # pyright: ignore[reportArgumentType]
            for layer in content
        }
        self.masks = [mask for each in self.layers.values() for mask in (each.m_c, each.m_s)]

    def attach(self) -> None:
        """Put the masked layers on the UNet."""
        for layer, module in self.layers.items():
            self.model.unet.set_submodule(layer, module)

    def detach(self) -> None:
        """Restore the layers of the UNet."""
        for layer, module in self.layers.items():
            self.model.unet.set_submodule(layer, module.base)

    def answer(self, adapter: str, noised: Noised, t: Tensor) -> Tensor:
        """Predict noised latents with one active adapter: "content", "style" or "merged"."""
        for layer in self.layers.values():
            layer.adapter = adapter
        return self.model.predict(noised.x, t, noised.prompt)


def ziplora(net: Sequential, step: MergeStep, method: Any) -> dict[str, Tensor]:
    """Return ZipLoRA's loss terms, from four passes, two with gradients; similarity: mean_l mean_i |m_c,i m_s,i|."""
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
    """Return DuoLoRA's loss terms, from eight passes, two with gradients: ZipLoRA's and the cycle of each image."""
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
    """Return the mean over layers with a prior of ||m_minor||_2 - ||m_dominant||_2 + ||m_dominant||_1."""
    terms = []
    for layer, module in layers.items():
        if layer.startswith(CONTENT_BLOCKS):
            terms.append(module.m_s.norm() - module.m_c.norm() + module.m_c.abs().sum())
        elif layer.startswith(STYLE_BLOCKS):
            terms.append(module.m_c.norm() - module.m_s.norm() + module.m_s.abs().sum())
    return torch.stack(terms).mean()
