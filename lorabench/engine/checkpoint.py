"""Checkpoints of a training, from which an interrupted training resumes with bit-identical results.

Every random draw of a training is seeded by the index of its forward pass. So the state consists of the factors, the
optimizer, its schedule and the number of updates.
"""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from lorabench.engine.curves import Curves

FILE = "training.pt"
KEYS = {"done", "factors", "optimiser", "schedule", "precision", "curves"}

log = logging.getLogger(__name__)


def read(path: Path) -> dict[str, Any] | None:
    """Return the state of a training, or None with a warning if the file is damaged, so that training starts again."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(state, dict) and state.keys() >= KEYS:
            return state
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError):
        pass
    log.warning("%s is damaged and is discarded; the training starts again", path)
    path.unlink(missing_ok=True)
    return None


class Checkpoint(pl.Callback):
    """Lightning callback that saves a training every few updates and restores the saved state at the start.

    The module must have `factors`, the list of trained tensors. Its batches are indices, `accumulate` per update.

    Args:
        folder: Folder of the checkpoint; it is read if it has one.
        every: Updates between two checkpoints.
        curves: Loss curves to save and restore too.
    """

    def __init__(self, folder: Path, every: int, curves: Curves | None = None):
        self.path, self.every, self.curves = folder / FILE, every, curves
        self.state = read(self.path) if self.path.is_file() else None

    @property
    def done(self) -> int:
        """Return the number of updates in the restored checkpoint, or 0."""
        return self.state["done"] if self.state else 0

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        if self.state is None:
            return
        with torch.no_grad():
            for factor, saved in zip(module.factors, self.state["factors"], strict=True):
                factor.copy_(saved)
        trainer.optimizers[0].load_state_dict(self.state["optimiser"])
        trainer.lr_scheduler_configs[0].scheduler.load_state_dict(self.state["schedule"])
        trainer.precision_plugin.load_state_dict(self.state["precision"])
        if self.curves is not None:
            self.curves.values.update(self.state["curves"])

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: int, batch_idx: int) -> None:
        # Before the next forward pass: Lightning logs the loss of the last one only after its callbacks.
        done, within = divmod(batch, trainer.accumulate_grad_batches)
        if not within and done > self.done and done % self.every == 0:
            self.save(trainer, list(module.factors), done)

    def save(self, trainer: pl.Trainer, factors: list[Tensor], done: int) -> None:
        """Write the checkpoint to a new file and rename it, so that an interruption leaves the previous one intact."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        state = {
            "done": done,
            "factors": [factor.detach() for factor in factors],
            "optimiser": trainer.optimizers[0].state_dict(),
            "schedule": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
            "precision": trainer.precision_plugin.state_dict(),
            "curves": self.curves.values if self.curves is not None else {},
        }
        torch.save(state, new)
        os.replace(new, self.path)
