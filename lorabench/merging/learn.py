"""Training of masks: a Lightning module for one pair, or for several pairs in one batch.

Pairs share only the frozen model. Each has its own seed for random draws and its own loss, Adam updates each number
independently, and a pair that has finished its steps keeps its masks. So the result of a pair does not depend on the
other pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lorabench.data.pairs import Pair
from lorabench.engine.lightning import curve, fit
from lorabench.lora.adapter import LoRA
from lorabench.lora.layer import Adapters, AllMasks, Masks, learned_params
from lorabench.merging.draws import Draws
from lorabench.merging.merge import MergeEnvironment, MergeItem
from lorabench.merging.step import MergeStep, Noised
from lorabench.models.conditioning import Conditioning
from lorabench.models.layer import Layer


class Fit(Protocol):
    """Learning rate and batch, see `FitSpec`."""

    lr: float
    batch: int


class Learner(Protocol):
    """A merge with learned masks, see `LearnedMasks`."""

    @property
    def fit(self) -> Fit: ...

    def masks(self, layers: Mapping[str, Layer], seed: int) -> AllMasks: ...

    def steps(self, images: Sequence[int]) -> int: ...

    def loss(self, step: MergeStep, masks: AllMasks) -> dict[str, Tensor]: ...

    def stop(self, terms: Mapping[str, Tensor]) -> Tensor | None: ...


@dataclass(frozen=True)
class Learned:
    """Learned masks of a pair, their number of parameters, and losses by term."""

    masks: AllMasks
    parameters: int
    losses: dict[str, list[float]]


def learn(
    merge: Learner, items: Sequence[MergeItem], layers: Mapping[str, Layer], env: MergeEnvironment
) -> list[Learned]:
    """Learn the masks of pairs in one batch.

    Args:
        merge: The merge.
        items: Adapters and pairs of equal shapes, in the basis of the merge.
        layers: The adapted layers.
        env: Model, seed, precision and progress.
    """
    first, *others = items
    assert env.model is not None
    model, loras = env.model, first.loras
    if others:
        loras = [LoRA.stack(alike) for alike in zip(*(item.loras for item in items), strict=True)]
    seeds = [item.seed(env.seed) for item in items]
    starts = [merge.masks(layers, seed) for seed in seeds]
    with model.attach(loras, dtype=torch.float32) as adapters:
        draws = [Draws(model, item.pair, seed, item.loras) for item, seed in zip(items, seeds, strict=True)]
        module = Merging(adapters, layers, merge, starts, [item.pair for item in items], draws)
        steps, is_finished = max(module.steps), module.is_finished
        fit(module, steps, model.device, env.trainer.precision, env.progress, is_finished=is_finished)
    return [
        Learned(masks, learned_params(start), {name: curve(values) for name, values in losses.items()})
        for start, masks, losses in zip(starts, module.results, module.losses, strict=True)
        if masks is not None
    ]


class Merging(pl.LightningModule):
    """Lightning module that learns the masks of pairs with equal shapes. The adapters and the model are frozen.

    Args:
        adapters: The adapters on the denoiser.
        layers: The adapted layers.
        merge: The merge.
        starts: Initial masks of each pair.
        pairs: The pairs.
        draws: Random draws of each pair.
    """

    def __init__(
        self,
        adapters: Adapters,
        layers: Mapping[str, Layer],
        merge: Learner,
        starts: Sequence[AllMasks],
        pairs: Sequence[Pair],
        draws: Sequence[Draws],
    ):
        super().__init__()
        self.adapters, self.layers, self.merge, self.spec = adapters, layers, merge, merge.fit
        self.draws = draws
        self.steps = [merge.steps([concept.weight for concept in pair.concepts]) for pair in pairs]
        self.masks, self.shared = parameters(starts, draws[0].model.device)
        for layer, module in adapters.layers.items():
            module.masks, module.masked = self.masks[layer], True
        self.learned = nn.ParameterList(
            tensor for layer in self.masks.values() for mask in layer for tensor in mask.named().values()
        )
        self.losses: list[dict[str, list[Tensor]]] = [{} for _ in pairs]
        self.results: list[AllMasks | None] = [None for _ in pairs]

    def draw(self, step: int) -> MergeStep:
        """Return the random draws of a step for all pairs, in one batch ordered by pair."""
        return joined([draws.step(step, self.spec.batch, self.adapters, self.layers) for draws in self.draws])

    def loss(self, step: int) -> dict[str, Tensor]:
        """Return the weighted terms [pairs] of a step."""
        return {name: term.reshape(-1) for name, term in self.merge.loss(self.draw(step), self.masks).items()}

    def training_step(self, step: int) -> Tensor:
        terms = self.loss(step)
        for pair, losses in enumerate(self.losses):
            if self.results[pair] is None:
                for name, term in terms.items():
                    losses.setdefault(name, []).append(term[pair].detach())
        self.log_dict({name: term.mean() for name, term in terms.items()}, batch_size=1)
        stop = self.merge.stop(terms)
        self.stopped = [False] * len(self.losses) if stop is None else stop.tolist()
        return torch.stack(list(terms.values())).sum()

    def on_train_batch_end(self, outputs: object, batch: int, batch_idx: int) -> None:
        for pair, steps in enumerate(self.steps):
            if self.results[pair] is None and (self.stopped[pair] or batch + 1 >= steps):
                self.results[pair] = self.masks_of(pair)
        if self.is_finished():
            self.trainer.should_stop = True

    def is_finished(self) -> bool:
        """Return whether every pair has finished its steps or met the method's criterion to stop."""
        return None not in self.results

    def masks_of(self, pair: int) -> AllMasks:
        """Return the current masks of a pair, on the CPU."""
        batched = len(self.losses) > 1
        return map_masks(self.masks, lambda mask: (mask[pair] if batched else mask).detach().cpu().clone())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # Updates of all tensors at once would be a race if tensors share memory.
        return torch.optim.Adam(self.learned, lr=self.spec.lr, foreach=False if self.shared else None)


def joined(steps: Sequence[MergeStep]) -> MergeStep:
    """Join the steps of several pairs into one batch."""
    first = steps[0]
    if len(steps) == 1:
        return first
    images = tuple(
        Noised(torch.cat([each.x for each in alike]), Conditioning.join([each.prompt for each in alike]))
        for alike in zip(*(step.images for step in steps), strict=True)
    )
    both = Conditioning.join([step.both for step in steps])
    noise, t = torch.cat([step.noise for step in steps]), torch.cat([step.t for step in steps])
    return MergeStep(first.model, first.adapters, first.layers, first.roles, images, both, noise, t, len(steps))


def parameters(starts: Sequence[AllMasks], device: torch.device) -> tuple[AllMasks, bool]:
    """Return learnable masks for the initial masks of each pair, and whether some of them share memory.

    A tensor that several layers share becomes several parameters on one memory. Each has its own gradient and Adam
    state, and each updates the numbers, as in the released code of DuoLoRA.
    """
    memory: dict[tuple[int, ...], Tensor] = {}
    shared = False

    def parameter(*tensors: Tensor) -> nn.Parameter:
        nonlocal shared
        key = tuple(id(tensor) for tensor in tensors)
        shared |= key in memory
        if key not in memory:
            together = torch.stack(tensors).squeeze(0) if len(tensors) == 1 else torch.stack(tensors)
            memory[key] = together.to(device, torch.float32)
        return nn.Parameter(memory[key])

    def parameter_masks(alike: Sequence[Masks]) -> Masks:
        kinds = alike[0].named()
        return Masks(**{kind: parameter(*(mask.named()[kind] for mask in alike)) for kind in kinds})

    masks = {
        layer: tuple(parameter_masks(alike) for alike in zip(*(start[layer] for start in starts), strict=True))
        for layer in starts[0]
    }
    return masks, shared


def map_masks(masks: AllMasks, function: Callable[[Tensor], Tensor]) -> AllMasks:
    """Return masks with a function applied to every tensor."""
    return {layer: tuple(mask.map(function) for mask in each) for layer, each in masks.items()}
