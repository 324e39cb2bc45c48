"""Distilling an `AutoencoderKL` onto the latent space of the patch code.

Trained from scratch an autoencoder of this size stalls for hours; given the latents, both halves are plain regression:
the encoder learns image -> latent, the decoder latent -> image, and the decoder, which sees neighbours, draws finer
than the linear code can. A little noise on its input prepares it for the UNet's samples.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from lorabench.micro import bank
from lorabench.micro.architecture import build_vae
from lorabench.micro.fit import fit, trapezoid
from lorabench.micro.latents import PatchPCA, to_tensor

LATENT_NOISE = 0.15
LOG_VARIANCE = -8.0


class Distillation(pl.LightningModule):
    def __init__(self, shards: list, pca: PatchPCA, batch: int, lr: float, steps: int, decay: int) -> None:
        super().__init__()
        self.vae = build_vae()
        for name, weight in self.vae.named_parameters():  # residual branches start silent
            if ".conv2.weight" in name:
                nn.init.zeros_(weight)
        self.data = (shards, pca)
        self.batch, self.lr, self.steps, self.decay = batch, lr, steps, decay

    def training_step(self, _: Tensor, __: int) -> Tensor:
        vae: Any = self.vae
        rng = torch.Generator().manual_seed(self.global_step)
        shards, pca = self.data
        shard = shards[int(torch.randint(len(shards), (1,), generator=rng))]
        pick = torch.randint(len(shard), (self.batch,), generator=rng).sort().values
        images = to_tensor(shard[pick.numpy()])
        latents = pca.encode(images)
        mean, log_variance = vae.encode(images, return_dict=False)[0].parameters.float().chunk(2, dim=1)
        code = F.mse_loss(mean, latents) + 0.01 * F.mse_loss(log_variance, torch.full_like(mean, LOG_VARIANCE))
        sigma = LATENT_NOISE * torch.rand(self.batch, 1, 1, 1, generator=rng)
        noisy = latents + sigma * torch.randn(latents.shape, generator=rng)
        drawn = vae.decode(noisy, return_dict=False)[0].float()
        error = F.mse_loss(drawn, images)
        self.log_dict({"code": code.detach(), "psnr": -10 * torch.log10(error.detach() / 4)}, prog_bar=True)
        return code + F.l1_loss(drawn, images) + 2 * error

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.vae.parameters(), lr=self.lr, betas=(0.9, 0.99), weight_decay=0.0)
        return trapezoid(optimizer, self.steps, self.decay, warmup=100)


def distil(work: Path, steps: int, decay: int, batch: int, lr: float) -> AutoencoderKL:
    """Train for `steps` on one thread, resuming from <work>/vae/last.ckpt; the result is saved to <work>/vae."""
    torch.set_num_threads(1)
    torch.manual_seed(0)  # the weights to start from
    shards, _ = bank.load(work / "bank")
    module = Distillation(shards, PatchPCA.load(work / "pca.safetensors"), batch, lr, steps, decay)
    out = work / "vae"
    fit(module, out, steps, save_every=100)
    module.vae.save_pretrained(out / "model")
    return module.vae
