"""Lightning Trainers without output of their own, on one device, with steps counted for the progress bar."""

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

logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # it prints hardware and tips at each start

# Batches have their own numbers, and SLURM's jobs are started by other means.
for warning in ("Couldn't infer the batch indices", "The `srun` command is available"):
    warnings.filterwarnings("ignore", message=warning)


class Steps(pl.Callback):
    """Lightning callback that reports finished optimizer steps. `start` steps were made before this training."""

    def __init__(self, progress: Progress, start: int = 0):
        self.progress, self.start = progress, start

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.progress(self.start + trainer.global_step)


class Written(BasePredictionWriter):
    """Lightning callback that calls write(batch, prediction) for each prediction."""

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
    """Run optimizer steps `start` to `steps`. The "batch" of a step is its index, which seeds its random draws.

    Args:
        module: The module to train.
        steps: Index after the last step.
        place: Device.
        precision: Lightning's name of the precision.
        progress: Called with the number of finished steps.
        logger: Logger for the losses.
        callbacks: More callbacks.
        start: Index of the first step.
        accumulate: Batches per step, whose gradients are averaged; there are steps * accumulate batches.
        is_finished: Return whether the module has met a criterion of its own to stop before the last step.
        options: Further options of `Trainer`.

    Raises:
        RuntimeError: If fewer steps were made, so that no stage stores an unfinished training.
    """
    steps_done = [Steps(progress, start)] if progress else []
    options = {"max_steps": steps - start, "accumulate_grad_batches": accumulate, **options}
    trainer = quiet_trainer(place, precision, [*callbacks, *steps_done], logger, **options)
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
    """Return a Trainer on one device that writes and prints nothing.

    It is an ordinary single process, also in a rank or in a job of SLURM, whose variables it ignores.

    Args:
        place: Device.
        precision: Lightning's name of the precision.
        callbacks: Callbacks.
        logger: Logger for the losses.
        options: Further options of `Trainer`.
    """
    clear_environment()  # Lightning would read arguments from it
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
    """Convert losses that were kept on the device during training to numbers."""
    return [float(value) for value in values]
