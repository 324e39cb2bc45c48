"""Reconstruction of an image by two adapters: during the training, and as one file.

A look is a set of images of the joint model under the full prompt, always from the same noise. Its consistency is the
mean cosine with the training images, over the content of DINO and the style of CSD, or over the available scorers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image

from lorabench.base import seed_of
from lorabench.config.schemas import GenerateSpec
from lorabench.data.concepts import ROLES, Role
from lorabench.data.scenes import Scene
from lorabench.lora.export import export
from lorabench.sampling.rule import Context, Sampling
from lorabench.sampling.sampler import decoded, sample_latents
from lorabench.scoring.cosine import cosine_matrix
from lorabench.scoring.scorer import Scorer

if TYPE_CHECKING:
    from lorabench.lora.adapter import Adapter
    from lorabench.models.model import DiffusionModel
    from lorabench.personalization.unzip import UnZipping

FILE = "looks.json"
READS: dict[str, Role] = {"dino": "content", "csd": "style"}
DRAWS = 16  # noisy images on which a file is compared with the exact model


class Consistency:
    """Mean cosine of images with the training images."""

    def __init__(self, scorers: Sequence[Scorer], images: Sequence[Image.Image]):
        chosen: list[tuple[Scorer, Role]] = [(each, READS[each.metric]) for each in scorers if each.metric in READS]
        self.scorers = chosen or [(each, ROLES[0]) for each in scorers]
        self.references = [each.embed([np.asarray(image) for image in images])[role] for each, role in self.scorers]

    @property
    def name(self) -> str:
        return " and ".join(f"{scorer.name.replace('@', f'/{role}@')}" for scorer, role in self.scorers)

    def __call__(self, images: np.ndarray) -> float:
        """Return the consistency of images [n, H, W, 3]."""
        pairs = zip(self.scorers, self.references, strict=True)
        cosines = [float(cosine_matrix(each.embed(images)[role], known).mean()) for (each, role), known in pairs]
        return sum(cosines) / len(cosines)


class Looks(pl.Callback):
    """Reconstructs the image every few steps, and ends the training if the consistency no longer increases.

    Args:
        folder: Folder for images and consistencies, from which a training resumes.
        every: Steps between two looks.
        stop: Smallest increase of the last two looks over the best earlier one; None: never end the training.
    """

    def __init__(
        self, model: DiffusionModel, sampling: Sampling, scene: Scene, spec: GenerateSpec, consistency: Consistency,
        folder: Path, every: int, stop: float | None, seed: int,
    ):  # fmt: skip
        self.model, self.scene, self.spec, self.consistency = model, scene, spec, consistency
        self.branches = sampling.branches(Context(ROLES, spec.steps, spec.guidance))
        self.folder, self.every, self.stop = folder, every, stop
        self.seeds = [seed_of("look", scene.prompt, index, seed) for index in range(spec.images)]
        known = json.loads((folder / FILE).read_text()) if (folder / FILE).is_file() else {}
        self.found: dict[int, float] = {int(step): value for step, value in known.items()}

    @property
    def is_finished(self) -> bool:
        """Return whether the last two looks increased the consistency by less than `stop`."""
        values = [self.found[step] for step in sorted(self.found)]
        return self.stop is not None and len(values) > 2 and max(values[-2:]) - max(values[:-2]) < self.stop

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: int, batch_idx: int
    ) -> None:
        done, within = divmod(batch + 1, trainer.accumulate_grad_batches)
        if within or done % self.every:
            return
        module: UnZipping = pl_module  # pyright: ignore[reportAssignmentType]
        module.mask(True)
        with trainer.precision_plugin.forward_context():
            latents = sample_latents(
                self.model, [self.scene] * len(self.seeds), self.seeds, self.spec.steps, self.spec.guidance,
                branches=self.branches, sampler=self.spec.sampler,
            )  # fmt: skip
            images = decoded(self.model, latents).numpy()
        self.found = {step: value for step, value in self.found.items() if step < done}
        self.found[done] = self.consistency(images)
        self.folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[0]).save(self.folder / f"{done:06d}.png")
        (self.folder / FILE).write_text(json.dumps(self.found))
        if self.is_finished:
            trainer.should_stop = True


@torch.no_grad()
def file_error(
    model: DiffusionModel, adapters: Sequence[Adapter], scene: Scene, latents: torch.Tensor, separated: bool = True
) -> float:
    """Return the relative error of one file of two adapters against their exact joint model.

        || e_file - e_joint || / || e_joint - e_base ||

    Args:
        model: Base model.
        adapters: Content and style, with their merge vectors as masks.
        scene: Prompts of the image; the file reads the full one.
        latents: Latents of the images [n, c, h, w], which are noised to levels from 0 to the noisiest.
        separated: Each adapter of the joint model reads its own prompt.
    """
    draw = torch.Generator().manual_seed(0)
    t = model.process.timesteps(DRAWS, draw)
    x0 = latents[torch.arange(DRAWS) % len(latents)]
    noise = torch.randn(x0.shape, generator=draw).to(x0)
    rows = model.process.add_noise(x0, noise, t)
    full, content, style = (
        model.encode_prompts([each] * DRAWS) for each in (scene.prompt, scene.subject, scene.styled)
    )
    base = model.predict(rows, t, full)
    with model.attach(adapters):
        joint = model.predict(rows, t, full, [content, style] if separated else None)
    with model.attach([export(adapters)]):
        file = model.predict(rows, t, full)
    return float((file - joint).norm() / (joint - base).norm())
