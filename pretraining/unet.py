"""The micro UNet with its two text encoders as one module, and its loss: v-prediction on latents.

The text encoders are trained together with the UNet. The loss is the error of v, with the weight min(1, 5 / (SNR + 1)).
This is Min-SNR (arXiv 2303.09556) with gamma 5, except that high noise, which determines backgrounds and palettes,
keeps its full weight. Timesteps that determine shapes are sampled more often.
"""

from __future__ import annotations

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from pretraining.architecture import RESOLUTION, build_scheduler, build_text_encoders, build_unet
from pretraining.loss import Loss
from pretraining.tokens import build_tokenizer

SNR_CAP = 5.0


class UNetDenoiser(nn.Module):
    """UNet and text encoders, combined as in `StableDiffusionXLPipeline`."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = build_unet()
        self.unet.set_attn_processor(AttnProcessor())
        self.text_encoder, self.text_encoder_2 = build_text_encoders(build_tokenizer())
        for name, weight in self.text_encoder.named_parameters():  # only its penultimate state is used
            weight.requires_grad_("layers.2." not in name and "final_layer_norm" not in name)

    def forward(self, latents: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """Predict v.

        Args:
            latents: Noisy latents [n, 12, 16, 16].
            t: Timesteps [n].
            ids: Token ids [n, 32].
        """
        first = self.text_encoder(ids, output_hidden_states=True)
        second = self.text_encoder_2(ids, output_hidden_states=True)
        states = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        size = torch.tensor([RESOLUTION, RESOLUTION, 0, 0, RESOLUTION, RESOLUTION], dtype=torch.float32)
        added = {"text_embeds": second.text_embeds, "time_ids": size.to(latents.device).expand(len(ids), 6)}
        return self.unet(latents, t, states, added_cond_kwargs=added).sample


class VLoss(Loss):
    """The weighted error of v."""

    levels = (50, 200, 400, 600, 800, 950)

    def __init__(self) -> None:
        super().__init__()
        self.alphas_cumprod = build_scheduler().alphas_cumprod

    def timesteps(self, n: int, rng: torch.Generator) -> Tensor:
        middle = torch.sigmoid(torch.randn(n, generator=rng) - 0.5)
        u = torch.where(torch.rand(n, generator=rng) < 0.25, torch.rand(n, generator=rng), middle)
        return (u * 1000).long().clamp(max=999)

    def noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        a = self.alphas_cumprod[t.cpu()].to(x0.device).view(-1, 1, 1, 1)
        return a.sqrt() * x0 + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * x0

    def weight(self, t: Tensor) -> Tensor:
        return (SNR_CAP * (1 - self.alphas_cumprod[t])).clamp(max=1)  # 5 / (SNR + 1) = 5 (1 - a)
