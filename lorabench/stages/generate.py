"""Stage 3: images of prompts by LoRAs: the merged one, or several with a strength each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from lorabench.adapters import Adapters, AllGates, attach
from lorabench.config import GenerateSpec, TrainerSpec
from lorabench.lora import LoRA
from lorabench.models.sdxl import SDXL
from lorabench.sampling import Gain, sample
from lorabench.stages.fitting import Progress, quiet_trainer
from lorabench.stages.learn import map_gates


class Generating(pl.LightningModule):
    """Samples batches of (prompts, seeds), asked for by index."""

    def __init__(
        self,
        model: SDXL,
        adapters: Adapters,
        gain: Gain | None,
        spec: GenerateSpec,
        batches: Sequence[tuple[Sequence[str], Sequence[int]]],
    ):
        super().__init__()
        self.model, self.adapters, self.gain = model, adapters, gain
        self.spec, self.batches = spec, batches

    def predict_step(self, index: int) -> Tensor:
        prompts, seeds = self.batches[index]
        steps, guidance = self.spec.steps, self.spec.guidance
        return sample(self.model, prompts, seeds, steps, guidance, self.adapters, self.gain)


class Images(pl.Callback):
    """Reports images done."""

    def __init__(self, progress: Progress):
        self.progress, self.done = progress, 0

    def on_predict_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        self.done += len(outputs)
        self.progress(self.done)


def generate(
    model: SDXL,
    loras: Sequence[LoRA],
    prompts: Sequence[str],
    seeds: Sequence[int],
    spec: GenerateSpec,
    trainer: TrainerSpec,
    gates: AllGates | None = None,
    gain: Gain | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Images uint8 [n, H, W, 3], one a prompt and seed (n of each).

    gates: by site, one a LoRA.  gain: strength of each LoRA by (site, progress); None is one for all.
    progress: called with the number of images done so far.
    """
    starts = range(0, len(prompts), spec.batch)
    batches = [(prompts[i : i + spec.batch], seeds[i : i + spec.batch]) for i in starts]
    callbacks = [Images(progress)] if progress else []
    on_device = gates and map_gates(gates, lambda tensor: tensor.to(model.device))
    with attach(model.unet, loras, on_device) as adapters:
        module = Generating(model, adapters, gain, spec, batches)
        runner = quiet_trainer(model.device, trainer.precision, callbacks)
        images: Any = runner.predict(module, range(len(batches)))
    return torch.cat(images).numpy()
