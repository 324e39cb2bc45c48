"""Merging and generating with a method, as the tasks do it, in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from conftest import CPU

from lorabench.config.schemas import GenerateSpec, TrainerSpec
from lorabench.data.concepts import Role
from lorabench.data.pairs import Pair
from lorabench.data.scenes import Scene
from lorabench.lora.adapter import LoRA
from lorabench.lora.projection import reductions
from lorabench.merging.masks import effective_ranks
from lorabench.merging.merge import Merged, MergeEnvironment, MergeItem
from lorabench.merging.method import Method
from lorabench.models.model import DiffusionModel
from lorabench.personalization.training import BACKBONE, Environment, Job
from lorabench.sampling.generate import generate_by_rule
from lorabench.sampling.parts import StepScales, step_scales
from lorabench.sampling.rule import Branch, Context


def merge_all(
    model: DiffusionModel,
    method: Method,
    items: Sequence[MergeItem],
    seed: int = 0,
    trainer: TrainerSpec = CPU,
    progress: Callable[[int], None] | None = None,
) -> list[Merged]:
    return method.merge.merge_pairs(items, MergeEnvironment(model.layers, model, seed, trainer, progress))


def merged(model: DiffusionModel, method: Method, loras, pair: Pair, seed: int = 0, **options: Any) -> Merged:
    [result] = merge_all(model, method, [MergeItem(tuple(loras), pair)], seed, **options)
    return result


def trained(job: Job, model: DiffusionModel, env: Environment) -> dict[str, LoRA]:
    """Run a job on its backbone."""
    backbone = trained(job.backbone, model, env)[BACKBONE] if job.backbone else None
    with model.changed(backbone):
        return job.run(model, env)


def fitting(model: DiffusionModel, method: Method, loras: Sequence[LoRA]) -> Sequence[LoRA]:
    """Return adapters that a method merges: rank reductions with the outputs of these, where it needs such."""
    if method.options["merge"] != "para":
        return loras
    return [reductions(model.denoiser, {layer: each.up for layer, each in lora.items()}) for lora in loras]


def ranks_of(method: Method, result: Merged, loras: Sequence[LoRA], pair: Pair) -> dict[str, list[float]]:
    parts = method.merge.parts(loras, pair.roles, result.masks)
    assert parts is not None
    return effective_ranks(parts.adapters, parts.masks)


def draw(
    model: DiffusionModel,
    method: Method,
    loras: Callable[[], Sequence[LoRA]],
    roles: Sequence[Role],
    result: Merged | None,
    prompts: Sequence[str | Scene],
    seeds: Sequence[int],
    spec: GenerateSpec,
    trainer: TrainerSpec = CPU,
    strength: Mapping[Role, float] | None = None,
) -> np.ndarray:
    """Generate with the merged file if the rule is plain, else with the adapters."""

    def parts() -> Any:
        return method.merge.parts(loras(), roles, result.masks if result else None, strength)

    file = result.file if result is not None and strength is None else None
    return generate_by_rule(model, method.sampling, file, parts, prompts, seeds, spec, trainer)


def sampled(
    model: DiffusionModel,
    method: Method,
    loras: Sequence[LoRA],
    roles: Sequence[Role],
    steps: int,
    guidance: float = 1.0,
) -> tuple[StepScales, Sequence[Branch] | None]:
    """Return the scales and branches of a method's sampling rule."""
    parts = method.merge.parts(loras, roles, None)
    assert parts is not None
    context = Context(tuple(roles), steps, guidance, model.layers.adapted(loras, roles))
    return step_scales(method.sampling, parts, context), method.sampling.branches(context)
