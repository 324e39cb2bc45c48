"""Stage 3: images of prompts by LoRAs: the merged one, or several with a strength each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from lorabench.config.schemas import GenerateSpec, TrainerSpec
from lorabench.data.pairs import Role, Scene
from lorabench.engine.lightning import Progress, Written, quiet_trainer
from lorabench.lora.adapter import LoRA
from lorabench.lora.layer import Adapters, AllMasks
from lorabench.merging.learn import map_masks
from lorabench.merging.method import Method
from lorabench.models.layer_map import LayerMap, text_layers
from lorabench.models.model import DiffusionModel
from lorabench.sampling.branches import Branch, Scale
from lorabench.sampling.sampler import sample

if TYPE_CHECKING:
    from lorabench.merging.merge import MergeResult


@dataclass(frozen=True)
class Share:
    """Numbers of the batches to draw, and what takes the images [b, H, W, 3] of each with the index of their first."""

    batches: Sequence[int]
    write: Callable[[int, Tensor], None]


class Generating(pl.LightningModule):
    """Samples batches of (prompts, seeds), asked for by index."""

    def __init__(
        self,
        model: DiffusionModel,
        adapters: Adapters,
        scale: Scale | None,
        spec: GenerateSpec,
        batches: Sequence[tuple[Sequence[str | Scene], Sequence[int]]],
        branches: Sequence[Branch] | None = None,
    ):
        super().__init__()
        self.model, self.adapters, self.scale = model, adapters, scale
        self.spec, self.batches, self.branches = spec, batches, branches

    def predict_step(self, index: int) -> Tensor:
        prompts, seeds = self.batches[index]
        steps, guidance = self.spec.steps, self.spec.guidance
        return sample(self.model, prompts, seeds, steps, guidance, self.adapters, self.scale, self.branches)


class Images(pl.Callback):
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
    scale: Scale | None = None,
    progress: Progress | None = None,
    share: Share | None = None,
    branches: Sequence[Branch] | None = None,
) -> np.ndarray:
    """Images uint8 [n, H, W, 3], one a prompt and seed (n of each).

    masks: by layer, one a LoRA.  scale: strength of each LoRA by (layer, progress), on the text encoders too, where
    they
    keep the one of the start; None is one for all.
    progress: called with the number of images done so far.  branches: as in `Method.guidance`; they need a scale.
    share: which of the batches to draw, each written as soon as it is there; the images returned are theirs.
    """
    starts = range(0, len(prompts), spec.batch)
    batches = [(prompts[i : i + spec.batch], seeds[i : i + spec.batch]) for i in starts]
    numbers = range(len(batches)) if share is None else share.batches
    callbacks: list[pl.Callback] = [Images(progress)] if progress else []
    if share is not None:
        callbacks.append(Written(lambda number, images: share.write(number * spec.batch, images)))
    on_device = masks and map_masks(masks, lambda tensor: tensor.to(model.device))
    words = {layer: scale(layer, 0.0) for lora in loras for layer in lora.text} if scale else None
    with model.attach(loras, on_device) as adapters, model.attach_text(loras, words):
        module = Generating(model, adapters, scale, spec, batches, branches)
        runner = quiet_trainer(model.device, trainer.precision, callbacks)
        images: Any = runner.predict(module, numbers)
    return torch.cat(images).numpy()


def draw(
    model: DiffusionModel,
    method: Method,
    loras: Callable[[], Sequence[LoRA]],
    roles: Sequence[Role],
    result: MergeResult | None,
    prompts: Sequence[str | Scene],
    seeds: Sequence[int],
    spec: GenerateSpec,
    trainer: TrainerSpec,
    progress: Progress | None = None,
    strength: Mapping[Role, float] | None = None,
    share: Share | None = None,
) -> np.ndarray:
    """Images as a method draws them: with the file of its merge if it makes one, else with all LoRAs at their scales.

    prompts: scenes, or strings that say the same in all wordings.
    loras: reads them, where the merge's own file is not what is drawn with.
    result: the method's merge of the LoRAs, where it has made one.
    strength: of all LoRAs of a role, which multiplies the method's own; None is 1; see also `merge.at_strength`.
    Returns as `generate`.
    """
    if result is not None and method.exports and strength is None:
        return generate(model, [result.lora], prompts, seeds, spec, trainer, progress=progress, share=share)
    own = method.rebase(loras())
    scale = strengths(method, model.layers, own, roles, spec.steps)
    if strength is not None:
        scale = times(scale, [strength[role] for role in roles])
    masks = result.masks if result is not None else None
    branches = method.guidance(spec.guidance, roles)
    return generate(model, own, prompts, seeds, spec, trainer, masks, scale, progress, share, branches)


def times(scale: Scale, factors: Sequence[float]) -> Scale:
    """The same strengths, each adapter's multiplied by a factor of its own."""
    return lambda layer, progress: tuple(g * f for g, f in zip(scale(layer, progress), factors, strict=True))


def strengths(method: Method, layers: LayerMap, loras: Sequence[LoRA], roles: Sequence[Role], steps: int) -> Scale:
    """The method's strengths in the denoiser, and on the text encoders, which no rule of layers and steps is about."""
    text = text_layers(loras, roles)
    rule = method.strengths(loras, layers.adapted(loras, roles), steps)
    return lambda layer, progress: method.scale(text[layer], progress) if layer in text else rule(layer, progress)
