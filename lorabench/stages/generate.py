"""Stage 3: images of a pair by a method, or by a frame method (base, content_only, style_only)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from lorabench.adapters import Adapters, attach
from lorabench.config import GenerateSpec, TrainerSpec
from lorabench.lora import LoRA
from lorabench.method import Method
from lorabench.models.sdxl import SDXL
from lorabench.sampling import sample
from lorabench.stages.fitting import Progress, quiet_trainer
from lorabench.stages.merge import AllGates


class Generating(pl.LightningModule):
    """Samples batches of (prompts, seeds), asked for by index."""

    def __init__(
        self,
        model: SDXL,
        adapters: Adapters,
        method: Method,
        spec: GenerateSpec,
        batches: Sequence[tuple[Sequence[str], Sequence[int]]],
    ):
        super().__init__()
        self.model, self.adapters, self.method = model, adapters, method
        self.spec, self.batches = spec, batches

    def predict_step(self, index: int) -> Tensor:
        prompts, seeds = self.batches[index]
        steps, guidance = self.spec.steps, self.spec.guidance
        return sample(self.model, prompts, seeds, steps, guidance, self.adapters, self.method.gain)


class Images(pl.Callback):
    """Reports images done."""

    def __init__(self, progress: Progress):
        self.progress, self.done = progress, 0

    def on_predict_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        self.done += len(outputs)
        self.progress(self.done)


def generate(
    model: SDXL,
    method: Method,
    loras: Sequence[LoRA],
    gates: AllGates | None,
    prompts: Sequence[str],
    seeds: Sequence[int],
    spec: GenerateSpec,
    trainer: TrainerSpec,
    progress: Progress | None = None,
) -> np.ndarray:
    """Images uint8 [n, H, W, 3], one a prompt and seed (n of each).

    loras: (content, style), also for the frame methods.  gates: those of the MergeResult.
    progress: called with the number of images done so far.
    """
    starts = range(0, len(prompts), spec.batch)
    batches = [(prompts[i : i + spec.batch], seeds[i : i + spec.batch]) for i in starts]
    callbacks = [Images(progress)] if progress else []
    on_device = gates and {
        site: tuple(gate.map(lambda tensor: tensor.to(model.device)) for gate in each) for site, each in gates.items()
    }
    with attach(model.unet, loras, on_device) as adapters:
        module = Generating(model, adapters, method, spec, batches)
        runner = quiet_trainer(model.device, trainer.precision, callbacks)
        images: Any = runner.predict(module, range(len(batches)))
    return torch.cat(images).numpy()
