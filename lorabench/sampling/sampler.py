"""Sampling: guidance as rows of one forward pass, and noise from the seed of each image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lorabench.base import UserError
from lorabench.data.scenes import Scene, Wording, worded
from lorabench.lora.layer import Adapters
from lorabench.models.conditioning import Conditioning
from lorabench.models.model import DiffusionModel
from lorabench.models.sampler import Sampler
from lorabench.sampling.parts import StepScales
from lorabench.sampling.rule import Branch


@torch.no_grad()
def decoded(model: DiffusionModel, latents: Tensor) -> Tensor:
    """Return the images of latents, uint8 [n, H, W, 3] on the CPU."""
    return (model.decode(latents) * 255).round().byte().permute(0, 2, 3, 1).cpu()


@torch.no_grad()
def sample_latents(
    model: DiffusionModel,
    prompts: Sequence[str | Scene],
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    adapters: Adapters | None = None,
    scales: StepScales | None = None,
    branches: Sequence[Branch] | None = None,
    sampler: str = "model",
    negative: str | None = None,
    routed: Tensor | None = None,
    after: Callable[[Tensor, int, Sampler], Tensor] | None = None,
) -> Tensor:
    """Return latents [n, c, h, w] of unit scale, one per prompt and seed.

    Args:
        model: The model.
        prompts: Prompts; scenes if branches read other variants than the prompt.
        seeds: Seed of each image.
        steps: Number of sampling steps.
        guidance: Scale of classifier-free guidance; 1 leaves the unconditional rows out.
        adapters: Attached adapters.
        scales: Scale of each adapter by step and layer; None leaves them as they are set.
        branches: Predictions to be summed instead of classifier-free guidance. They need adapters and scales; those of
            weight 0 are left out.
        sampler: `GenerateSpec.sampler`.
        negative: Prompt of the unconditional rows and of branches without a prompt; None and "" are the empty prompt.
        routed: Further scale of each adapter by prompt, [n, adapters]. It needs adapters and scales.
        after: Function of latents, step and sampler that changes the latents after each step.
    """
    n = len(prompts)
    run = model.sampler(steps, sampler)
    latents = run.start(model.initial_noise(seeds))
    words: list[Wording | None] = [None, "prompt"] if guidance > 1 and model.guidance == "cfg" else ["prompt"]
    embedded = check_guidance(model.guidance, guidance, branches, negative)
    if branches is not None:
        branches = [branch for branch in branches if branch.weight]
        words = [branch.prompt for branch in branches]
    encoded: dict[Wording | None, Conditioning] = {None: model.encode_prompts([negative] * n)} if negative else {}

    def states(several: Sequence[Wording | None]) -> Conditioning:
        for each in several:
            if each not in encoded:
                encoded[each] = model.encode_prompts(worded(prompts, each)) if each else model.unconditional(n)
        return Conditioning.join([encoded[each] for each in several])

    conditioning, own, switches = states(words), None, None
    if branches is not None:
        switches = torch.tensor([branch.scales for branch in branches]).repeat_interleave(n, dim=0)
        if any(branch.own for branch in branches):
            count = len(branches[0].scales)
            own = [states([branch.read_by(k) for branch in branches]) for k in range(count)]
    if routed is not None:
        rows = routed.repeat(len(words), 1)
        switches = rows if switches is None else switches * rows
    for index, t in enumerate(run.timesteps):
        if adapters is not None and scales is not None:  # Heun's scheduler and PNDM's call the model more than once
            adapters.rows(scales.at(index * steps // len(run.timesteps), switches))
        rows = run.scaled(latents.repeat(len(words), 1, 1, 1), t)
        predictions = model.predict(rows, t, conditioning, own, embedded).unflatten(0, (len(words), n))
        prediction = _guided(predictions, guidance, branches)
        latents = run.step(prediction, t, latents)
        if after is not None:
            latents = after(latents, index, run)
    return latents


def check_guidance(
    kind: str, guidance: float, branches: Sequence[Branch] | None, negative: str | None = None
) -> float | None:
    """Check that a model can be guided as asked.

    Args:
        kind: Kind of guidance of the model, see `DiffusionModel`.
        guidance: Guidance scale.
        branches: Predictions to be summed.
        negative: Negative prompt.

    Returns:
        The scale as an input of the denoiser, or None.

    Raises:
        UserError: If it cannot.
    """
    if kind == "cfg":
        return None
    if negative:
        raise UserError(
            f"negative='{negative}' has no effect, because the guidance of this model is {kind}; use "
            "model.true_guidance=true or negative=null"
        )
    if branches is not None:
        raise UserError(
            f"this method sums predictions with and without the prompt, and the guidance of this model is {kind}; "
            "use model.true_guidance=true or another method"
        )
    if kind == "none" and guidance > 1:
        raise UserError(f"generate.guidance={guidance:g} has no effect on a model without guidance; use 1")
    return guidance if kind == "embedded" else None


def _guided(predictions: Tensor, guidance: float, branches: Sequence[Branch] | None) -> Tensor:
    """Combine the predictions of all branches [b, n, c, h, w] into one [n, c, h, w]."""
    if branches is not None:
        weights = torch.tensor([branch.weight for branch in branches], device=predictions.device)
        return torch.einsum("b,bnchw->nchw", weights, predictions)
    if len(predictions) == 1:
        return predictions[0]
    unconditional, conditional = predictions
    return unconditional + guidance * (conditional - unconditional)
