"""How every stage uses Lightning: quietly, on the model's own device, steps counted for the one progress bar."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.callbacks import BasePredictionWriter
from pytorch_lightning.loggers import Logger
from torch import Tensor, device

from lorabench.engine.environment import clear_environment

Progress = Callable[[int], None]  # called with the number of units done so far

logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # it reports hardware and tips at each start

# Batches carry their own numbers, and jobs of SLURM are started by other means.
for told in ("Couldn't infer the batch indices", "The `srun` command is available"):
    warnings.filterwarnings("ignore", message=told)


class Steps(pl.Callback):
    """Reports optimiser steps done; start: those of an earlier training that this one goes on from."""

    def __init__(self, progress: Progress, start: int = 0):
        self.progress, self.start = progress, start

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.progress(self.start + trainer.global_step)


class Written(BasePredictionWriter):
    """Hands each prediction on as soon as it is there: write(batch that was asked for, prediction)."""

    def __init__(self, write: Callable[[Any, Any], None]):
        super().__init__("batch")
        self.write = write

    def write_on_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, prediction: Any, batch_indices: Any, batch: Any,
        batch_idx: int, dataloader_idx: int,
    ) -> None:  # fmt: skip
        self.write(batch, prediction)


def fit(
    module: pl.LightningModule,
    steps: int,
    place: device,
    precision: str,
    progress: Progress | None = None,
    logger: Logger | None = None,
    callbacks: Sequence[pl.Callback] = (),
    start: int = 0,
    accumulate: int = 1,
    is_finished: Callable[[], bool] = lambda: False,
    **options: Any,
) -> None:
    """Run optimizer steps `start` to `steps`; the "batch" of each is its index, from which a module seeds its draws.

    Args:
        accumulate: Batches per step, whose gradients are averaged; there are steps * accumulate of them.
        is_finished: Whether the module may have ended before the last step, by a criterion of its own.

    Raises:
        RuntimeError: If other than the steps asked for were made, so that no stage stores an unfinished training.
    """
    told = [Steps(progress, start)] if progress else []
    options = {"max_steps": steps - start, "accumulate_grad_batches": accumulate, **options}
    trainer = quiet_trainer(place, precision, [*callbacks, *told], logger, **options)
    trainer.fit(module, range(start * accumulate, steps * accumulate))
    if trainer.global_step != steps - start and not is_finished():
        raise RuntimeError(f"the training made {trainer.global_step} of {steps - start} optimizer steps")


def quiet_trainer(
    place: device,
    precision: str,
    callbacks: Sequence[pl.Callback] = (),
    logger: Logger | None = None,
    **options: Any,
) -> pl.Trainer:
    """A Trainer on one device that writes and prints nothing by itself.

    It is an ordinary single process, also in a rank or in a job of SLURM, whose variables it does not look at.
    """
    clear_environment()  # Lightning would take arguments from it
    return pl.Trainer(
        accelerator="cpu" if place.type == "cpu" else "gpu",
        devices=1 if place.type == "cpu" else [place.index or 0],
        precision=precision,  # pyright: ignore[reportArgumentType] (a value of the configuration)
        callbacks=list(callbacks),
        logger=logger or False,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[LightningEnvironment()],
        **options,
    )


def curve(values: Sequence[Tensor]) -> list[float]:
    """Losses kept on the device while training, as numbers."""
    return [float(value) for value in values]
