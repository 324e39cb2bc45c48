"""The joint training of UnZipLoRA (arXiv 2412.04465); see schemes/unziplora.py for its equations.

A step is one forward pass: the image with the full prompt, and the states of the content and the style prompt.
Column masks and merge vectors of all layers are two rows of one tensor, so that they cost a few operations per step
and not a few per layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lorabench.base import seed_of
from lorabench.config.schemas import LoRASpec
from lorabench.data.concepts import ROLES, Concept
from lorabench.data.stylised import ThreePrompts
from lorabench.lora.adapter import LoRA
from lorabench.lora.factors import Factors
from lorabench.lora.layer import Adapters
from lorabench.lora.masks import Masks
from lorabench.models.conditioning import Conditioning
from lorabench.models.model import DiffusionModel
from lorabench.personalization.columns import choose, chooses, is_masked, period_of, scores
from lorabench.personalization.dreambooth import denoised, trainable, weighted_mse
from lorabench.personalization.initial import random_factors
from lorabench.personalization.optimizers import optimiser, schedule
from lorabench.personalization.resumable import fit_resumable
from lorabench.personalization.training import Environment
from lorabench.personalization.views import Batch, views


class JointJob(Protocol):
    """The parts of `UnZipJob` that the training reads; `scheme` is an `UnZipLoRA`."""

    @property
    def concept(self) -> Concept: ...

    @property
    def recipe(self) -> LoRASpec: ...

    @property
    def prompts(self) -> ThreePrompts: ...

    @property
    def steps(self) -> int: ...

    @property
    def scheme(self) -> Any: ...


class UnZipping(pl.LightningModule):
    """Trains both adapters, and chooses their columns.

    Attributes:
        learned: Factors of all layers, then the merge vectors.
        vectors: Merge vectors of both adapters, [2, outputs of all layers].
        columns: Columns that may change, 0 or 1, of the same shape.
        starts: First output of each layer in them.
    """

    def __init__(self, model: DiffusionModel, adapters: Adapters, job: JointJob, seed: int):
        super().__init__()
        self.model, self.job, self.scheme, self.spec, self.seed = model, job, job.scheme, job.recipe, seed
        self.layers = adapters.layers
        self.period = period_of(self.spec.steps, self.scheme.recalibrations)
        self.scale = self.spec.alpha / self.spec.rank
        factors = trainable(adapters, self.scale)
        self.widths = [layer.base.out_features for layer in self.layers.values()]
        self.vectors = nn.Parameter(torch.ones(2, sum(self.widths), device=model.device))
        every = self.scheme.all_columns(model.layers, self.spec)
        self.every = [every[name] for name in self.layers]
        self.columns = torch.cat(
            [
                torch.tensor(each, device=model.device)[:, None].expand(-1, width)
                for each, width in zip(self.every, self.widths, strict=True)
            ],
            dim=1,
        ).float()
        self.learned = nn.ParameterList([*factors, self.vectors])
        self.groups: list[dict[str, Any]] = [{"params": factors, "lr": self.spec.lr}]
        if self.scheme.merge_lr:
            # A decay would pull them from 1 (direct merge) to 0 (no update).
            self.groups.append({"params": [self.vectors], "lr": self.scheme.merge_lr, "weight_decay": 0.0})
        self.images = views(model, job.concept.images, self.spec.flips, self.spec.crops, seed, self.spec.timesteps)
        self.own = [model.encode_prompts([prompt]) for prompt in job.prompts[1:]]
        model.encode_prompts([job.prompts.full])

    @property
    def factors(self) -> list[Tensor]:
        """Return all tensors that training changes, for checkpoints."""
        return [*self.learned, self.columns]

    @property
    def chooses_columns(self) -> bool:
        """Return whether an adapter has layers in which not all columns learn."""
        return not all(all(each) for each in self.every)

    def training_step(self, forward: int) -> Tensor:
        self.update, self.part = divmod(forward, self.spec.accumulate)
        masked = is_masked(self.update, self.period)
        vectors = self.mask(masked)
        draw = torch.Generator().manual_seed(seed_of(self.seed, forward))
        batch = self.images.draw(self.model, self.spec.batch, draw)
        loss = self.reconstruction(batch)
        self.log("reconstruction", loss, batch_size=1)
        if masked and self.scheme.lambda_orthogonality and self.scheme.merge_lr:
            overlap = self.overlap(vectors)
            self.log("orthogonality", overlap, batch_size=1)
            loss = loss + self.scheme.lambda_orthogonality * overlap
        return loss

    def reconstruction(self, batch: Batch) -> Tensor:
        """Return the error of the joint model in one forward pass."""
        count = len(batch.prompts)
        words = self.model.encode_prompts(batch.prompts)
        prediction, target = denoised(self.model, batch, words, self.streams(count))
        return weighted_mse(prediction, target, self.model.process.loss_weight(batch.t, self.spec))

    def streams(self, count: int) -> list[Conditioning] | None:
        """Return the prompt of each adapter for a number of rows; None if both read the full prompt."""
        return [each.take([0] * count) for each in self.own] if self.scheme.prompt_separation else None

    def mask(self, masked: bool) -> Tensor:
        """Set the masks of the next forward pass, and return them [2, outputs of all layers].

        Args:
            masked: Only chosen columns and their merge vectors; else all columns, and merge vectors do not learn.
        """
        learns = masked and self.scheme.merge_lr > 0
        vectors = self.vectors if learns else self.vectors.detach()
        if learns and self.scheme.merge_gradient == "both":
            both = self.columns.prod(dim=0)
            vectors = both * vectors + (1 - both) * vectors.detach()
        found = vectors * self.columns if masked else vectors
        if not (self.scheme.merge_lr or self.chooses_columns):
            return found  # ones
        for layer, each in zip(self.layers.values(), found.split(self.widths, dim=1), strict=True):
            layer.masks, layer.masked = (Masks(o=each[0]), Masks(o=each[1])), True
        return found

    def overlap(self, vectors: Tensor) -> Tensor:
        """Return |m_c v_c . m_s v_s|, the mean over layers of the mean over columns, or the sum."""
        products = vectors.prod(dim=0).abs()
        if self.scheme.orthogonality == "sum":
            return products.sum()
        return torch.stack([each.mean() for each in products.split(self.widths)]).mean()

    def on_after_backward(self) -> None:
        """Choose columns, in the steps that do, from the gradients of the step's whole batch."""
        whole = self.part == self.spec.accumulate - 1
        if whole and self.chooses_columns and chooses(self.update, self.period):
            self.recalibrate()
            for k, role in enumerate(ROLES):
                self.log(f"{role} columns", self.columns[k].mean(), batch_size=1)

    @torch.no_grad()
    def recalibrate(self) -> None:
        """Choose the columns of both adapters in every layer; the content chooses first."""
        fresh = self.scheme.chosen == "fresh"
        parts = zip(
            self.layers.values(), self.every, self.columns.split(self.widths, dim=1),
            self.vectors.split(self.widths, dim=1), strict=True,
        )  # fmt: skip
        for layer, every, columns, vectors in parts:
            count = max(1, int(self.scheme.columns * columns.shape[1]))
            for k, (factors, gradient) in enumerate(zip(layer.factors(), gradients(layer), strict=True)):
                if every[k]:
                    continue
                # alpha / rank is a factor of the update, and of each gradient already.
                scaled = Factors(factors.down, factors.up * self.scale)
                slope = Factors(gradient.down * self.gradient_scale, gradient.up * self.scale * self.gradient_scale)
                rated = scores(scaled, slope, vectors[k], self.scheme.score, self.scheme.threshold)
                shared = self.scheme.disjoint and not any(every)
                free = columns[0] == 0 if k and shared else torch.ones_like(rated, dtype=torch.bool)
                best = choose(rated, count, free, self.scheme.ties).to(columns)
                columns[k].copy_(best if fresh else torch.maximum(columns[k], best))

    @property
    def gradient_scale(self) -> float:
        """Return the setting, divided by the factor of mixed precision on the gradients."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return self.scheme.gradient_scale / (scaler.get_scale() if scaler is not None else 1.0)

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        super().optimizer_step(*arguments, **options)
        with torch.no_grad():
            self.vectors.clamp_(0, 1)

    def configure_optimizers(self) -> Any:
        found = optimiser(self.spec, self.groups)
        return {"optimizer": found, "lr_scheduler": {"scheduler": schedule(found, self.spec), "interval": "step"}}

    def adapters(self, loras: Sequence[LoRA]) -> tuple[LoRA, LoRA]:
        """Return trained factors with column masks and alpha / rank folded in, and merge vectors as masks."""
        results = []
        for k, lora in enumerate(loras):
            columns, vectors = (each[k].detach().split(self.widths) for each in (self.columns, self.vectors))
            layers = list(self.layers)
            factors = {
                name: Masks(o=mask).masked(lora[name]).times(self.scale)
                for name, mask in zip(layers, columns, strict=True)
            }
            masks = {name: Masks(o=each.clone()) for name, each in zip(layers, vectors, strict=True)}
            results.append(LoRA(factors, masks=masks if self.scheme.merge_lr else None))
        return results[0], results[1]


def gradients(layer: Any) -> list[Factors]:
    """Return the gradients of a layer's factors, by adapter."""
    downs, ups = layer.down.grad.split(layer.ranks, dim=-2), layer.up.grad.split(layer.ranks, dim=-1)
    return [Factors(down, up) for down, up in zip(downs, ups, strict=True)]


def unzip(
    model: DiffusionModel,
    job: JointJob,
    env: Environment,
    callbacks: Sequence[pl.Callback] = (),
    is_finished: Callable[[], bool] = lambda: False,
) -> tuple[LoRA, LoRA]:
    """Train both adapters of a job.

    Args:
        model: Base model.
        job: Images, prompts, recipe and settings.
        env: Seed, trainer and progress; the progress counts optimizer steps, of `job.steps`.
        callbacks: Further callbacks of the training.
        is_finished: Returns True if one of them has ended the training early.

    Returns:
        The content and the style adapter, with merge vectors as their masks.

    Raises:
        UserError: If the recipe does not fit the model or this machine.
    """
    seed = seed_of("unzip", job.concept.identity(), *job.prompts, env.seed)
    layers = model.layers.trained(job.recipe.blocks, job.recipe.targets)
    starts = [random_factors(layers, job.recipe.rank, seed_of(seed, role), job.scheme.initial_up) for role in ROLES]
    with model.attach(starts, dtype=torch.float32) as adapters:
        module = UnZipping(model, adapters, job, seed)
        fit_resumable(module, job.recipe, env, job.steps, callbacks, is_finished)
        return module.adapters(adapters.loras())
