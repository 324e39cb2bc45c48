"""Images generated during the training of a LoRA, to see whether it learns too little or too much."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from PIL import Image

from lorabench.config.schemas import GenerateSpec
from lorabench.models.model import DiffusionModel
from lorabench.sampling.sampler import decoded, sample_latents


@dataclass(frozen=True)
class SampleTarget:
    """Folder of the samples, <update>.png, and their sampler settings (steps and guidance)."""

    folder: Path
    spec: GenerateSpec


class Samples(pl.Callback):
    """Generates an image of a prompt every few updates, always from the same noise.

    Args:
        target: Folder and sampler settings.
        every: Number of updates between images.
        model: The model in training.
        prompt: Prompt of the images.
        seed: Seed of the noise.
        text: Whether the text encoders are in training, so that the prompt is encoded again each time.
    """

    def __init__(self, target: SampleTarget, every: int, model: DiffusionModel, prompt: str, seed: int, text: bool):
        self.target, self.every = target, every
        self.model, self.prompt, self.seed, self.text = model, prompt, seed, text

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: int, batch_idx: int) -> None:
        done, within = divmod(batch + 1, trainer.accumulate_grad_batches)
        if not within and done % self.every == 0:
            encoded = self.model.fresh_prompts() if self.text else nullcontext()
            with encoded, trainer.precision_plugin.forward_context():
                spec = self.target.spec
                latents = sample_latents(self.model, [self.prompt], [self.seed], spec.steps, spec.guidance)
                [image] = decoded(self.model, latents).numpy()
            self.target.folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(self.target.folder / f"{done:06d}.png")
