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
from pretraining.tokens import MAX_LENGTH, build_tokenizer

EMPTY_SHARE = 0.1  # captions dropped for classifier-free guidance
SNR_CAP = 5.0


class Denoiser(nn.Module):
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


class VLoss:
    """The training loss of a batch. All random numbers come from one generator."""

    def __init__(self) -> None:
        self.alphas_cumprod = build_scheduler().alphas_cumprod
        self.empty = torch.tensor(build_tokenizer()("", padding="max_length", max_length=MAX_LENGTH).input_ids)

    def __call__(
        self, model: nn.Module, x0: Tensor, ids: Tensor, seed: int, rows: slice, device: torch.device
    ) -> Tensor:
        """Return the mean weighted error of v over some rows of a batch.

        Args:
            model: The denoiser.
            x0: Latents of the whole batch [n, 12, 16, 16], on the CPU.
            ids: Token ids of the whole batch [n, 32].
            seed: Seed of timesteps, noise and dropped captions of the whole batch.
            rows: Rows that this process computes, so that the loss does not depend on the number of devices.
            device: Device of the model.
        """
        rng, n = torch.Generator().manual_seed(seed), len(x0)
        ids = torch.where(torch.rand(n, 1, generator=rng) < EMPTY_SHARE, self.empty, ids)
        middle = torch.sigmoid(torch.randn(n, generator=rng) - 0.5)
        u = torch.where(torch.rand(n, generator=rng) < 0.25, torch.rand(n, generator=rng), middle)
        t = (u * 1000).long().clamp(max=999)
        noise = torch.randn(x0.shape, generator=rng)
        a = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        weight = (SNR_CAP * (1 - a)).clamp(max=1)  # 5 / (SNR + 1) = 5 (1 - a)
        noisy, target = a.sqrt() * x0 + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * x0
        noisy, target, weight, t, ids = (each[rows].to(device) for each in (noisy, target, weight, t, ids))
        return (weight * (model(noisy, t, ids).float() - target) ** 2).mean()


def tokenize(captions: list[str]) -> Tensor:
    """Return token ids, int16 [n, 32]."""
    known: dict[str, list[int]] = {}
    tokenizer = build_tokenizer()
    for text in captions:
        if text not in known:
            known[text] = tokenizer(text, padding="max_length", max_length=MAX_LENGTH, truncation=True).input_ids
    return torch.tensor([known[text] for text in captions], dtype=torch.int16)
