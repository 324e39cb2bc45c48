"""Optimizer steps of a training, which resumes from its last checkpoint if it was killed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl

from lorabench.config.schemas import LoRASpec
from lorabench.engine.checkpoint import Checkpoint
from lorabench.engine.lightning import fit
from lorabench.personalization.training import Environment


def fit_resumable(
    module: Any,
    spec: LoRASpec,
    env: Environment,
    steps: int,
    callbacks: Sequence[pl.Callback] = (),
    is_finished: Callable[[], bool] = lambda: False,
    start: int = 0,
    folder: str = "",
) -> None:
    """Run optimizer steps `start` to `steps` of a module on the device of its model.

    Args:
        module: A Lightning module with `model`, and with `factors` for the checkpoint.
        spec: Its `accumulate` and `max_grad_norm`.
        env: Trainer, progress in optimizer steps, curves, and the scratch folder.
        steps: Index after the last step.
        callbacks: Further callbacks, which run before the checkpoint is saved.
        is_finished: Return whether one of them has ended the training early.
        start: Index of the first step.
        folder: Folder of the checkpoint in the scratch folder.
    """
    callbacks = [*callbacks]
    if env.scratch:
        checkpoint = Checkpoint(env.scratch / folder, env.trainer.checkpoint_every, env.curves)
        callbacks.append(checkpoint)
        start = max(start, checkpoint.done)
    fit(
        module, steps, module.model.device, env.trainer.precision, env.progress, env.curves, callbacks, start,
        spec.accumulate, is_finished, gradient_clip_val=spec.max_grad_norm,
    )  # fmt: skip
