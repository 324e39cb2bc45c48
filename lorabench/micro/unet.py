"""Pretraining of the micro UNet and its two text encoders: v-prediction on the latents of the bank.

The text encoders learn together with the UNet. The loss is the v-prediction error, its weight capped where the signal
is strong: min(1, 5 / (SNR + 1)), which is Min-SNR (arXiv 2303.09556) with gamma 5 except that the noisy end, where
backgrounds and palettes are decided, keeps its full weight. Timesteps are drawn denser where shape is decided.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lorabench.micro import bank
from lorabench.micro.architecture import RESOLUTION, build_scheduler, build_text_encoders, build_unet
from lorabench.micro.fit import fit, trapezoid
from lorabench.micro.latents import PatchPCA, encode_bank
from lorabench.micro.tokens import MAX_LENGTH, build_tokenizer

EMPTY_SHARE = 0.1  # captions dropped for classifier-free guidance
SNR_CAP = 5.0


class Denoiser(nn.Module):
    """UNet and text encoders joined as `StableDiffusionXLPipeline` joins them."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = build_unet()
        self.unet.set_attn_processor(AttnProcessor())
        self.text_encoder, self.text_encoder_2 = build_text_encoders(build_tokenizer())
        for name, weight in self.text_encoder.named_parameters():  # only its penultimate state is ever read
            weight.requires_grad_("layers.2." not in name and "final_layer_norm" not in name)

    def forward(self, latents: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """Noisy latents [n, 12, 16, 16], timesteps [n], token ids [n, 32] -> predicted v."""
        first = self.text_encoder(ids, output_hidden_states=True)
        second = self.text_encoder_2(ids, output_hidden_states=True)
        states = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        size = torch.tensor([RESOLUTION, RESOLUTION, 0, 0, RESOLUTION, RESOLUTION], dtype=torch.float32)
        added = {"text_embeds": second.text_embeds, "time_ids": size.to(latents.device).expand(len(ids), 6)}
        return self.unet(latents, t, states, added_cond_kwargs=added).sample


class Pretraining(pl.LightningModule):
    """Every step draws its own batch from (step, rank), so a resumed run sees what an undisturbed one would."""

    def __init__(self, latents: Tensor, ids: Tensor, batch: int, lr: float, steps: int, decay: int) -> None:
        super().__init__()
        self.model = Denoiser()
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.999)).requires_grad_(False)
        self.data = (latents, ids)  # in a tuple: neither parameters nor buffers
        self.batch, self.lr, self.steps, self.decay = batch, lr, steps, decay
        self.empty = torch.tensor(build_tokenizer()("", padding="max_length").input_ids)
        self.alphas_cumprod = build_scheduler().alphas_cumprod

    def training_step(self, _: Tensor, __: int) -> Tensor:
        rng = torch.Generator().manual_seed(self.global_step * 4096 + self.global_rank)
        latents, ids = self.data
        pick = torch.randint(len(latents), (self.batch,), generator=rng)
        x0, ids = latents[pick].float(), ids[pick].long()
        ids = torch.where(torch.rand(self.batch, 1, generator=rng) < EMPTY_SHARE, self.empty, ids)
        middle = torch.sigmoid(torch.randn(self.batch, generator=rng) - 0.5)
        u = torch.where(torch.rand(self.batch, generator=rng) < 0.25, torch.rand(self.batch, generator=rng), middle)
        t = (u * 1000).long().clamp(max=999)
        noise = torch.randn(x0.shape, generator=rng)
        a = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        v = self.model(a.sqrt() * x0 + (1 - a).sqrt() * noise, t, ids)
        target = a.sqrt() * noise - (1 - a).sqrt() * x0
        weight = (SNR_CAP * (1 - a)).clamp(max=1)  # 5 / (SNR + 1) = 5 (1 - a)
        loss = (weight * (v.float() - target) ** 2).mean()
        self.log("loss", loss, prog_bar=True)
        return loss

    def optimizer_step(self, *args, **kwargs) -> None:
        super().optimizer_step(*args, **kwargs)
        self.ema.update_parameters(self.model)  # here and not at the end of the batch: a checkpoint holds it already

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.lr, betas=(0.9, 0.99), weight_decay=0.01)
        return trapezoid(optimizer, self.steps, self.decay)


def tokenize(captions: list[str]) -> Tensor:
    """int16 [n, 32]."""
    known: dict[str, list[int]] = {}
    tokenizer = build_tokenizer()
    for text in captions:
        if text not in known:
            known[text] = tokenizer(text, padding="max_length", max_length=MAX_LENGTH, truncation=True).input_ids
    return torch.tensor([known[text] for text in captions], dtype=torch.int16)


def load_data(work: Path) -> tuple[Tensor, Tensor]:
    """Latents and token ids of the bank; the latent space is fitted once and kept beside it."""
    shards, captions = bank.load(work / "bank")
    path = work / "pca.safetensors"
    if not path.exists():
        PatchPCA.fit(np.array(shards[0])).save(path)
    return encode_bank(PatchPCA.load(path), shards), tokenize(captions)


def pretrain(
    work: Path,
    out: Path,
    steps: int,
    decay: int,
    batch: int,
    lr: float,
    devices: int,
    start: Path | None,
    save_every: int = 250,
) -> None:
    """Train until `steps`, the rate falling to zero over the last `decay`; resumes from out/last.ckpt, else `start`."""
    torch.set_num_threads(1)
    torch.manual_seed(0)  # the weights to start from
    latents, ids = load_data(work)
    module = Pretraining(latents, ids, batch, lr, steps, decay)
    fit(module, out, steps, save_every, devices, start)
