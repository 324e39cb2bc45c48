"""Second moments of the activations in every adapted layer, for each adapter by itself on its own images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from lorabench.engine.lightning import quiet_trainer
from lorabench.lora.layer import Adapters, MaskedLoRA, product
from lorabench.merging.draws import Draws
from lorabench.merging.merge import Activations, MergeEnvironment, MergeItem
from lorabench.merging.step import MergeStep
from lorabench.models.layer import Layer


class Moment:
    """Forward pre-hook that averages v v^T over tokens, [K teachers, n, n], with v = x or z = D x.

    Rows are ordered by teacher, as in `MergeStep.teachers`. Products are computed in float32 for any precision of the
    model, because bfloat16 would lose the small eigenvalues.

    Args:
        inputs: Use v = x instead of v = D x.
    """

    def __init__(self, inputs: bool):
        self.inputs = inputs
        self.total: Tensor | float = 0.0
        self.count = 0

    @torch.no_grad()
    def __call__(self, layer: MaskedLoRA, args: tuple[Tensor, ...]) -> None:
        with torch.autocast(args[0].device.type, enabled=False):
            x = args[0].float()
            v = x if self.inputs else product(x, layer.down.float())
            v = v.reshape(len(layer.ranks), -1, v.shape[-1])
            self.total = self.total + (v.mT @ v / v.shape[1])
            self.count += 1

    def mean(self) -> Tensor:
        """Return the mean over all forward passes."""
        assert isinstance(self.total, Tensor)
        return self.total / self.count


@contextmanager
def watched(adapters: Adapters, inputs: bool) -> Iterator[dict[str, Moment]]:
    """Collect the second moments of the forward passes in the block."""
    moments = {layer: Moment(inputs) for layer in adapters.layers}
    hooks = [module.register_forward_pre_hook(moments[layer]) for layer, module in adapters.layers.items()]
    try:
        yield moments
    finally:
        for hook in hooks:
            hook.remove()


def teacher_moments(steps: Sequence[MergeStep], inputs: bool = False) -> dict[str, Tensor]:
    """Return second moments by layer [K, n, n] over the teacher passes of several draws.

    Args:
        steps: The draws.
        inputs: Moments of the inputs x (n = in) instead of z = D x (n = R).
    """
    with watched(steps[0].adapters, inputs) as moments:
        for step in steps:
            step.teachers()
    return {layer: moment.mean() for layer, moment in moments.items()}


def collect(
    wanted: Activations, item: MergeItem, layers: Mapping[str, Layer], env: MergeEnvironment
) -> dict[str, Tensor]:
    """Return the second moments of a pair's activations by layer, [adapters, n, n], computed at the run's precision.

    Args:
        wanted: Settings of the teacher passes and of the moments.
        item: The pair with its adapters.
        layers: Adapted layers.
        env: Model, seed and precision.
    """
    assert env.model is not None
    draws = Draws(env.model, item.pair, item.seed(env.seed), item.loras)
    precision = quiet_trainer(env.model.device, env.trainer.precision).precision_plugin
    with env.model.attach(item.loras, dtype=torch.float32) as adapters, precision.forward_context():
        steps = [draws.step(step, wanted.batch, adapters, layers) for step in range(wanted.draws)]
        return teacher_moments([from_noise(step) for step in steps] if wanted.noise else steps, wanted.inputs)


def from_noise(step: MergeStep) -> MergeStep:
    """Return the same draw at the noisiest timestep, with noise instead of images."""
    images = tuple(replace(each, x=step.noise) for each in step.images)
    return replace(step, images=images, t=torch.full_like(step.t, step.model.process.noisiest))
