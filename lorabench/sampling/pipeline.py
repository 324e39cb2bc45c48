"""A sampling rule on the user's diffusers pipeline, through hooks of its denoiser.

Before each forward pass, the rule's adapter scales of that step are set; the step is the place of the timestep in the
scheduler's list. A rule with branches needs other predictions than the two of classifier-free guidance, e(x, "") and
e(x, p), from which the pipeline makes

    eps = u + g (c - u),   g: its guidance scale

So the forward pass gets the rows of all branches, and returns their means

    u = sum_b w_b e_b / (1 - g)  over branches of the empty prompt,    c = sum_b w_b e_b / g  over those of the prompt

which give the rule's sum of all w_b e_b if the weights of the empty prompt sum to 1 - g. The pipeline's prompt is used
for all wordings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lorabench.base import UserError
from lorabench.lora.layer import Adapters
from lorabench.models.layer import Layer
from lorabench.sampling.parts import Parts, StepScales, step_scales
from lorabench.sampling.rule import Branch, Context, Sampling

SINGLE = 1e-6  # largest difference of weights from those of guidance


class RuleHooks:
    """The hooks of a rule on a denoiser; `remove` takes them off.

    Args:
        pipeline: A pipeline with `scheduler` and `guidance_scale`.
        denoiser: Denoiser of the pipeline.
        rule: Sampling rule.
        parts: The attached adapters with their scales.
        adapters: The adapters on the denoiser.
        layers: Adapted layers.
    """

    def __init__(
        self, pipeline: Any, denoiser: nn.Module, rule: Sampling, parts: Parts, adapters: Adapters,
        layers: Mapping[str, Layer],
    ):  # fmt: skip
        self.pipeline, self.rule, self.parts, self.adapters, self.layers = pipeline, rule, parts, adapters, layers
        self.known: dict[int, StepScales] = {}  # by number of steps
        self.step = -1
        self.combine: tuple[Sequence[Branch], int, float] | None = None  # values of the current forward pass
        self.handles = [
            denoiser.register_forward_pre_hook(self.before, with_kwargs=True),
            denoiser.register_forward_hook(self.after),
        ]

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()

    def before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Set the scales of this step, and expand the rows to those of the branches."""
        sample = args[0] if args else kwargs["sample"]
        t = args[1] if len(args) > 1 else kwargs["timestep"]
        steps = self.place(t)
        guidance = float(self.pipeline.guidance_scale)
        guided = bool(self.pipeline.do_classifier_free_guidance)
        context = Context(self.parts.roles, steps, guidance if guided else 1.0, self.layers)
        if steps not in self.known:
            self.known[steps] = step_scales(self.rule, self.parts, context)
        branches = self.rule.branches(context)
        if branches is None:
            self.adapters.rows(self.known[steps].at(self.step))
            self.combine = None
            return args, kwargs
        branches = [branch for branch in branches if branch.weight]
        self.check(branches, context.guidance)
        rows = len(sample)
        n = rows // 2 if guided else rows
        switches = torch.tensor([branch.scales for branch in branches]).repeat_interleave(n, dim=0)
        self.adapters.rows(self.known[steps].at(self.step, switches))
        index = torch.cat([torch.arange(n) + (n if guided and branch.prompt else 0) for branch in branches])
        self.combine = branches, n, context.guidance
        return taken(args, rows, index), taken(kwargs, rows, index)

    def after(self, module: Any, args: Any, output: Any) -> Any:
        """Return the two predictions for the pipeline's guidance."""
        if self.combine is None:
            return output
        branches, n, guidance = self.combine
        found = output[0] if isinstance(output, tuple) else output.sample
        predictions = found.unflatten(0, (len(branches), n))
        sides = []
        for prompt, share in ((False, 1 - guidance), (True, guidance)):
            if not share:  # without guidance there are no rows of the empty prompt
                continue
            weights = [branch.weight / share if bool(branch.prompt) == prompt else 0.0 for branch in branches]
            sides.append(torch.einsum("b,bnchw->nchw", torch.tensor(weights).to(predictions), predictions))
        result = torch.cat(sides)
        if isinstance(output, tuple):
            return (result, *output[1:])
        output.sample = result
        return output

    def check(self, branches: Sequence[Branch], guidance: float) -> None:
        """Raise UserError unless all adapters read the pipeline's prompt and the weights are those of its guidance."""
        if any(branch.own for branch in branches):
            raise UserError(
                f"{type(self.rule).__name__} has a prompt for each LoRA, and a pipeline has one; use task=generate"
            )
        empty = sum(branch.weight for branch in branches if not branch.prompt)
        whole = sum(branch.weight for branch in branches)
        if abs(empty - (1 - guidance)) > SINGLE or abs(whole - 1) > SINGLE:
            raise UserError(
                f"{type(self.rule).__name__} weighs the empty prompt by {empty:g} at guidance {guidance:g}, which a "
                "pipeline cannot do; use task=generate"
            )

    def place(self, t: Any) -> int:
        """Find the step of a timestep, and return the number of steps."""
        timesteps = self.pipeline.scheduler.timesteps
        if getattr(self.pipeline.scheduler, "order", 1) > 1:
            name = type(self.pipeline.scheduler).__name__
            raise UserError(f"{name} calls the denoiser twice per step; use EulerDiscreteScheduler")
        places = (timesteps == torch.as_tensor(t, device=timesteps.device).flatten()[0]).nonzero().flatten().tolist()
        if not places:
            raise UserError(
                "the denoiser was called at a noise level that the scheduler does not have; use the pipeline"
            )
        later = [place for place in places if place > self.step]
        self.step = later[0] if later else places[0]  # another call of the pipeline begins again
        return len(timesteps)


def taken(value: Any, rows: int, index: Tensor) -> Any:
    """Return nested arguments with these rows of every tensor that has `rows` of them."""
    if isinstance(value, Tensor):
        return value[index.to(value.device)] if value.ndim and len(value) == rows else value
    if isinstance(value, Mapping):
        return {key: taken(each, rows, index) for key, each in value.items()}
    if isinstance(value, tuple):
        return tuple(taken(each, rows, index) for each in value)
    return [taken(each, rows, index) for each in value] if isinstance(value, list) else value
