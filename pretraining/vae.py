"""Distillation of an `AutoencoderKL` onto the latent space of the patch code.

Trained from scratch, an autoencoder of this size stalls for hours. With given latents, both halves are regressions: the
encoder learns image -> latent, the decoder latent -> image. The decoder sees neighboring patches, so its images are
finer than those of the linear code. Slight noise on its input prepares it for the UNet's samples.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

from lorabench.engine.environment import clear_environment
from pretraining import bank
from pretraining.architecture import build_vae
from pretraining.encoded import CODE
from pretraining.latents import PatchPCA, to_tensor
from pretraining.precision import training_precision

LATENT_NOISE = 0.15
LOG_VARIANCE = -8.0


class Distillation(pl.LightningModule):
    """Training of an autoencoder on the latents of the patch code."""

    def __init__(self, shards: list, pca: PatchPCA, batch: int, lr: float, steps: int, decay: int) -> None:
        super().__init__()
        self.vae = build_vae()
        for name, weight in self.vae.named_parameters():  # residual branches start as zero
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
        rate = LambdaLR(optimizer, self.rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}

    def rate(self, step: int) -> float:
        """Return the factor of the learning rate: 100 steps of warm-up, a constant part, a linear decay to zero."""
        return min(1.0, (step + 1) / 100, max(self.steps - step, 1) / max(self.decay, 1))


def distil(work: Path, steps: int, decay: int, batch: int, lr: float, every: int = 100) -> AutoencoderKL:
    """Train for `steps` on one thread, resuming from <work>/vae/last.ckpt; the result is saved to <work>/vae/model.

    Args:
        work: Folder of images and checkpoints.
        steps: Number of steps.
        decay: Number of last steps, in which the rate falls to zero.
        batch: Images per step.
        lr: Learning rate.
        every: Steps between checkpoints.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)  # for the initial weights
    module = Distillation(bank.load(work / "bank"), PatchPCA.load(CODE), batch, lr, steps, decay)
    out, last = work / "vae", work / "vae" / "last.ckpt"
    clear_environment()  # Lightning would read arguments from it
    trainer = pl.Trainer(
        accelerator="auto",
        devices=1,
        precision=training_precision(),
        max_steps=steps,
        gradient_clip_val=1.0,
        callbacks=[ModelCheckpoint(out, every_n_train_steps=every, save_last=True, save_top_k=0)],
        logger=False,
    )
    epoch = DataLoader(TensorDataset(torch.arange(every)))  # an epoch ends with its checkpoint
    trainer.fit(module, epoch, ckpt_path=last if last.exists() else None)
    if trainer.global_step != steps:
        raise RuntimeError(f"the training made {trainer.global_step} of {steps} optimizer steps")
    module.vae.save_pretrained(out / "model")
    return module.vae
