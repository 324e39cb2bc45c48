"""Generate images of prompts with one merged LoRA, or with several adapters at their scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from lorabench.config.schemas import GenerateSpec, TrainerSpec
from lorabench.data.scenes import Scene
from lorabench.engine.lightning import Progress, Written, quiet_trainer
from lorabench.lora.adapter import LoRA
from lorabench.lora.layer import Adapters, AllMasks
from lorabench.models.model import DiffusionModel
from lorabench.sampling.encoder import ExpertEncoder, encoder_scales
from lorabench.sampling.parts import Parts, StepScales, step_scales, whole
from lorabench.sampling.routing import LEARNED, as_scene, marker_scales
from lorabench.sampling.rule import Branch, Context, Sampling
from lorabench.sampling.sampler import decoded, sample_latents


@dataclass(frozen=True)
class Share:
    """The batches to generate.

    Args:
        batches: Their numbers.
        write: Called with the index of the first image of a batch and its images [b, H, W, 3].
    """

    batches: Sequence[int]
    write: Callable[[int, Tensor], None]


class Generating(pl.LightningModule):
    """Samples batches of (prompts, seeds), asked for by index."""

    def __init__(
        self,
        model: DiffusionModel,
        adapters: Adapters,
        scales: StepScales | None,
        spec: GenerateSpec,
        batches: Sequence[tuple[Sequence[str | Scene], Sequence[int]]],
        branches: Sequence[Branch] | None = None,
        routed: Tensor | None = None,
    ):
        super().__init__()
        self.model, self.adapters, self.scales = model, adapters, scales
        self.spec, self.batches, self.branches, self.routed = spec, batches, branches, routed

    def predict_step(self, index: int) -> Tensor:
        prompts, seeds = self.batches[index]
        spec, how = self.spec, (self.adapters, self.scales, self.branches)
        routed = None if self.routed is None else self.routed[index * spec.batch :][: len(prompts)]
        latents = sample_latents(
            self.model, prompts, seeds, spec.steps, spec.guidance, *how, sampler=spec.sampler, negative=spec.negative,
            routed=routed,
        )  # fmt: skip
        return decoded(self.model, latents)


class CountImages(pl.Callback):
    """Reports images done."""

    def __init__(self, progress: Progress):
        self.progress, self.done = progress, 0

    def on_predict_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        self.done += len(outputs)
        self.progress(self.done)


def generate(
    model: DiffusionModel,
    loras: Sequence[LoRA],
    prompts: Sequence[str | Scene],
    seeds: Sequence[int],
    spec: GenerateSpec,
    trainer: TrainerSpec,
    masks: AllMasks | None = None,
    scales: StepScales | None = None,
    progress: Progress | None = None,
    share: Share | None = None,
    branches: Sequence[Branch] | None = None,
    routed: Tensor | None = None,
) -> np.ndarray:
    """Generate one image per prompt and seed.

    Args:
        masks: Masks by layer, one per LoRA.
        scales: Scale of each LoRA; None is one for all.
        progress: Called with the number of images done.
        share: Batches to generate, each written as soon as it is done; None generates all.
        branches: Predictions of a step, see `Sampling.branches`; they need scales.
        routed: [prompts, LoRAs], further scale of each LoRA by prompt; they need scales.

    Returns:
        Images uint8 [n, H, W, 3].
    """
    starts = range(0, len(prompts), spec.batch)
    batches = [(prompts[i : i + spec.batch], seeds[i : i + spec.batch]) for i in starts]
    numbers = range(len(batches)) if share is None else share.batches
    callbacks: list[pl.Callback] = [CountImages(progress)] if progress else []
    if share is not None:
        callbacks.append(Written(lambda number, images: share.write(number * spec.batch, images)))
    on_device = masks and {
        layer: tuple(mask.map(lambda tensor: tensor.to(model.device)) for mask in each) for layer, each in masks.items()
    }
    text = scales.text if scales is not None else None
    with model.attach(loras, on_device) as adapters, model.attach_text(loras, text):
        module = Generating(model, adapters, scales, spec, batches, branches, routed)
        runner = quiet_trainer(model.device, trainer.precision, callbacks)
        images: Any = runner.predict(module, numbers)
    return torch.cat(images).numpy()


def generate_by_rule(
    model: DiffusionModel,
    sampling: Sampling,
    file: LoRA | None,
    parts: Callable[[], Parts | None],
    prompts: Sequence[str | Scene],
    seeds: Sequence[int],
    spec: GenerateSpec,
    trainer: TrainerSpec,
    progress: Progress | None = None,
    share: Share | None = None,
    encoder: ExpertEncoder | None = None,
) -> np.ndarray:
    """Generate one image per prompt and seed by a sampling rule.

    Args:
        file: The merged LoRA, used if the rule is plain; None uses the parts in any case.
        parts: Returns the adapters that the merge keeps apart, or None if it keeps none; called only if they are used.
        prompts: Scenes, or strings, which are the same in all prompt variants and may have markers.

        encoder: Expert encoder, for a rule whose routing is learned.

    Returns:
        Images uint8 [n, H, W, 3].
    """
    scenes = [as_scene(each) for each in prompts]
    if file is not None and sampling.is_plain:
        return generate(model, [file], scenes, seeds, spec, trainer, progress=progress, share=share)
    kept = parts()
    if kept is None:
        assert file is not None
        kept = whole(file)
    layers = model.layers.adapted(kept.adapters, kept.roles)
    context = Context(kept.roles, spec.steps, spec.guidance, layers)
    scales, branches = step_scales(sampling, kept, context), sampling.branches(context)
    routed = None if sampling.routing == "none" else marker_scales(scenes, kept.roles)
    if sampling.routing in LEARNED:
        assert encoder is not None
        routed = encoder_scales(encoder, model, scenes, kept.roles)
    return generate(
        model, kept.adapters, scenes, seeds, spec, trainer, kept.masks, scales, progress, share, branches, routed
    )  # fmt: skip
