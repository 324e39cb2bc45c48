"""How the model's two trainings run: the same trainer, checkpoints to go on from, and the same course of the rate.

The rate rises shortly, is constant, and falls linearly to zero at the end: constant in between, so that a training can
be continued, or ended anywhere by a short fall from its last checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset


def trapezoid(optimizer: Optimizer, steps: int, decay: int, warmup: int = 300) -> dict[str, Any]:
    """What `configure_optimizers` returns: the rate falls over the last `decay` of `steps` optimiser steps."""
    schedule = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warmup, max(steps - step, 1) / max(decay, 1)))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(
    module: pl.LightningModule, out: Path, steps: int, save_every: int, devices: int = 1, start: Path | None = None
) -> None:
    """Train until `steps`, each rank on its own device; resumes from out/last.ckpt, else from `start`, else anew.

    A module draws its own batches from the number of the step, so nothing but that number is loaded.
    """
    trainer = pl.Trainer(
        accelerator="auto",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        precision="bf16-mixed",
        max_steps=steps,
        gradient_clip_val=1.0,
        callbacks=[ModelCheckpoint(out, every_n_train_steps=save_every, save_last=True, save_top_k=0)],
        logger=CSVLogger(out, name="log"),
        log_every_n_steps=20,
        use_distributed_sampler=False,
    )
    epoch = DataLoader(TensorDataset(torch.arange(save_every)))  # it ends with its checkpoint
    last = out / "last.ckpt"
    trainer.fit(module, epoch, ckpt_path=last if last.exists() else start)
    trainer.save_checkpoint(last)  # the end need not fall on a regular save
