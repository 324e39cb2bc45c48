"""Training of a denoiser: `python -m pretraining denoiser`.

The rate is constant after a warm-up, so that training can continue for any time. `--anneal M` branches from the last
checkpoint with a linear decay over M samples, for export; the training at constant rate continues from its own state.
If that state is lost, training continues from the exported weights with a new warm-up, which costs about 20,000
samples.

Every batch is a function of the number of samples seen. So a resumed training gives the weights of an uninterrupted
one, and the number of devices changes only the last digits.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Timer
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from lorabench.base import UserError
from lorabench.engine.environment import clear_environment
from pretraining.course import course_of, exported_samples
from pretraining.curve import Curve
from pretraining.encoded import EncodedBank
from pretraining.models import MICRO_SDXL, MicroModel
from pretraining.precision import training_precision

WARM_UP = 4_000  # samples
EMA_WINDOW = 20_000  # samples


class Pretraining(pl.LightningModule):
    """One optimizer step per batch.

    Args:
        data: The pictures.
        batch: Samples per step over all devices.
        lr: Constant learning rate.
        anneal: Samples of the decay to zero that begins at the loaded checkpoint; 0 keeps the rate constant.
        weights: Exported pipeline to start from; None starts from random weights.
        kind: The model.
    """

    def __init__(
        self,
        data: EncodedBank,
        batch: int = 64,
        lr: float = 6e-4,
        anneal: int = 0,
        weights: Path | None = None,
        kind: MicroModel = MICRO_SDXL,
    ) -> None:
        super().__init__()
        self.model = kind.module()
        self.samples = 0  # seen in total
        if weights:
            load_exported(self.model, weights)
            self.samples = exported_samples(weights) or 0
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(1 - batch / EMA_WINDOW))
        self.ema.requires_grad_(False)
        self.started, self.anneal_from = self.samples, self.samples
        self.data, self.batch, self.lr, self.anneal = data, batch, lr, anneal
        self.loss = kind.loss()

    def rate(self) -> float:
        """Return the learning rate of the next step."""
        warm = min(1.0, (self.samples - self.started + self.batch) / WARM_UP)
        left = 1 - (self.samples - self.anneal_from) / self.anneal if self.anneal else 1.0
        return self.lr * warm * max(left, 0.0)

    def on_train_batch_start(self, *_: Any) -> None:
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.rate()

    def training_step(self, _: Tensor, __: int) -> Tensor:
        each = self.batch // self.trainer.world_size
        rows = slice(self.global_rank * each, (self.global_rank + 1) * each)
        x0, ids = self.data.batch(self.samples, self.batch)
        # On a CPU the fused backward pass is slow: it costs 6 % of a step, and 13 % of one of micro SD3.
        with sdpa_kernel(SDPBackend.MATH):
            return self.loss(self.model, x0, ids, self.samples, rows, self.device)

    def optimizer_step(self, *args, **kwargs) -> None:
        super().optimizer_step(*args, **kwargs)
        self.ema.update_parameters(self.model)
        self.samples += self.batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), lr=self.lr, betas=(0.9, 0.99), weight_decay=0.01)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["course"] = {"samples": self.samples, "started": self.started}
        if self.anneal:
            checkpoint["course"] |= {"anneal_from": self.anneal_from, "anneal": self.anneal}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        course = checkpoint["course"]
        self.samples, self.started = course["samples"], course["started"]
        self.anneal_from = course.get("anneal_from", self.samples)


class Keeper(pl.Callback):
    """Callback that saves the training and a row of its curve every `every` samples and at the end.

    Args:
        out: Folder of last.ckpt and curve.csv.
        every: Samples between two checkpoints.
        until: Samples at which training stops; None: it stops by time.
        curve: Writer of curve.csv.
    """

    def __init__(self, out: Path, every: int, until: int | None, curve: Curve) -> None:
        self.out, self.every, self.until, self.curve = out, every, until, curve
        self.saved: int | None = None

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, *_: Any) -> None:
        self.curve.step(outputs["loss"], module.batch)
        if self.until is not None and module.samples >= self.until:
            trainer.should_stop = True
        elif module.samples // self.every > (module.samples - module.batch) // self.every:
            self.save(trainer, module)

    def save(self, trainer: pl.Trainer, module: Any) -> None:
        """Save a checkpoint and a row of the curve, unless this step is saved already."""
        if self.saved == module.samples:
            return
        partial = self.out / "new.ckpt"
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            partial.rename(self.out / "last.ckpt")  # an interrupted save leaves the earlier checkpoint
            self.curve.row(module)
        self.saved = module.samples


class TimeLimit(Timer):
    """Limit of the time of this process. Lightning's timer would also count the time before a resumption."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


def pretrain(
    data: EncodedBank,
    out: Path,
    start: Path | None = None,
    weights: Path | None = None,
    minutes: float | None = None,
    samples: int | None = None,
    anneal: int = 0,
    batch: int = 64,
    lr: float = 6e-4,
    devices: int = 1,
    every: int = 32_000,
    heldout: tuple[Tensor, Tensor] | None = None,
    kind: MicroModel = MICRO_SDXL,
) -> int:
    """Train for a time, a number of samples or the length of a decay; return the number of samples seen in total.

    Args:
        data: The images.
        out: Folder of the checkpoint and the curve; a checkpoint there is resumed.
        start: Checkpoint to branch from if `out` has none.
        weights: Exported pipeline to start from if there is no checkpoint; None: random weights.
        minutes: Stop after this time. A resumed training gets the full time again.
        samples: Stop when so many samples were seen in total.
        anneal: Samples of the decay.
        batch: Samples per step over all devices.
        lr: Constant learning rate.
        devices: Number of devices.
        every: Samples between two checkpoints.
        heldout: Latents and token ids for the curve.
        kind: The model.
    """
    if batch % devices:
        raise UserError(f"--batch={batch} must be a multiple of --devices={devices}; use --batch {devices * 32}")
    torch.set_num_threads(1)
    torch.manual_seed(0)  # for the initial weights
    last = out / "last.ckpt"
    found = last if last.exists() else start
    module = Pretraining(data, batch, lr, anneal, None if found else weights, kind)
    if found:
        course = course_of(found)
        begun, anneal_from = course["samples"], course.get("anneal_from", course["samples"])
    else:
        begun = anneal_from = module.samples
    until = anneal_from + anneal if anneal else samples
    out.mkdir(parents=True, exist_ok=True)
    keeper = Keeper(out, every, until, Curve(out / "curve.csv", begun, heldout))
    clear_environment()  # Lightning would read arguments from it
    trainer = pl.Trainer(
        accelerator="auto",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        precision=training_precision(),
        max_epochs=-1,
        gradient_clip_val=1.0,
        callbacks=[keeper, *([] if minutes is None else [TimeLimit(timedelta(minutes=minutes))])],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    if until is not None and begun >= until:
        return begun
    trainer.fit(module, DataLoader(TensorDataset(torch.arange(1000))), ckpt_path=found, weights_only=True)
    keeper.save(trainer, module)
    return module.samples


def load_exported(model: nn.Module, folder: Path) -> None:
    """Load the denoiser and text encoders of an exported pipeline."""
    for name, part in model.named_children():
        stem = "model" if name.startswith("text_encoder") else "diffusion_pytorch_model"
        state = load_file(folder / name / f"{stem}.safetensors")
        part.load_state_dict({key: value.float() for key, value in state.items()})
