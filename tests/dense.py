"""An independent merge without our adapters and passes: dense updates, one pass at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call


class Dense:
    """Predictions for the pair of a Merging module, with copies of the module's masks.

    Attributes:
        basis: "svd" masks the singular value decomposition of the dense update, "raw" masks the factors.
        leaves: Layer -> mask of each adapter.
    """

    def __init__(self, module, loras, basis: str = "raw"):
        self.model, self.loras, self.basis = module.draws[0].model, loras, basis
        self.t = module.draw(0).t
        module.adapters.detach()
        self.weights = dict(self.model.unet.named_parameters())
        self.kinds = {layer: [next(iter(mask.named())) for mask in masks] for layer, masks in module.masks.items()}
        self.leaves = {
            layer: [mask.only().detach().clone().requires_grad_(True) for mask in masks]
            for layer, masks in module.masks.items()
        }

    def masked(self, update: Tensor, up: Tensor, down: Tensor, kind: str, m: Tensor) -> Tensor:
        if kind == "i":
            return update @ m.diag()
        if kind == "o":
            return m.diag() @ update
        if self.basis == "raw":
            return up @ m.diag() @ down
        u, s, vt = torch.linalg.svd(update, full_matrices=False)
        r = len(m)
        return u[:, :r] @ m.diag() @ s[:r].diag() @ vt[:r]

    def predict(self, noised, merged: bool = False, on: tuple[int, ...] = ()) -> Tensor:
        """Predict with all masked updates, or with the unmasked updates of the adapters `on`."""
        weights = {}
        for layer, leaves in self.leaves.items():
            total = self.weights[f"{layer}.weight"]
            for k, (lora, kind, m) in enumerate(zip(self.loras, self.kinds[layer], leaves, strict=True)):
                up, down = lora[layer].up, lora[layer].down
                if merged:
                    total = total + self.masked(up @ down, up, down, kind, m)
                elif k in on:
                    total = total + up @ down
            weights[f"{layer}.weight"] = total
        states, pooled, size = noised.prompt.tensors
        added = {"text_embeds": pooled, "time_ids": size}
        arguments = (noised.x, self.t, states)
        options = {"added_cond_kwargs": added, "return_dict": False}
        return functional_call(self.model.unet, weights, arguments, options)[0]

    def clean(self, x: Tensor, v: Tensor) -> Tensor:
        a, b = self.signal_and_spread()
        return a * x - b * v

    def renoised(self, noised, v: Tensor, noise: Tensor, prompt):
        """Estimate the clean latents from a velocity and add noise again."""
        a, b = self.signal_and_spread()
        return type(noised)(a * self.clean(noised.x, v) + b * noise, prompt)

    def signal_and_spread(self) -> tuple[Tensor, Tensor]:
        alpha_bar = self.model.pipeline.scheduler.alphas_cumprod[self.t].view(-1, 1, 1, 1)
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def mse(left: Tensor, right: Tensor) -> Tensor:
    return ((left - right) ** 2).mean()
