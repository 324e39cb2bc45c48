"""The merge steps that merge_step.py times: the product's, the sequential reference's, and parts of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from statistics import median
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks import sequential
from benchmarks.sequential import ColumnMasked, RankMasked, Sequential
from benchmarks.sizes import RANKS, plain_pair, random_lora
from lorabench.lora.adapter import LoRA, in_basis
from lorabench.merging.constyle import remove
from lorabench.merging.draws import Draws
from lorabench.merging.learn import Merging
from lorabench.merging.method import load
from lorabench.merging.step import MergeStep
from lorabench.models.conditioning import Conditioning
from lorabench.models.sdxl.model import SDXL

SEED = 0
# Names of the table rows.
PLAIN_ZIPLORA, PLAIN_DUOLORA = "reference ZipLoRA", "reference DuoLoRA (released)"
ZIPLORA, DUOLORA, RELEASED = "ZipLoRA", "DuoLoRA", "DuoLoRA (released)"
FLOOR = "bare UNet in ZipLoRA's passes"
EXTRA_DUOLORA, EXTRA_RELEASED = "extra passes of DuoLoRA", "extra passes of DuoLoRA (released)"
# The reference has no masks shared by q, k, v and out, so ours are not shared either; the UNet passes are the same.
METHODS = {
    PLAIN_ZIPLORA: load("ziplora").merge,
    ZIPLORA: load("ziplora").merge,
    DUOLORA: load("duolora").merge,
    PLAIN_DUOLORA: load("duolora_released", shared_masks=False).merge,
    RELEASED: load("duolora_released", shared_masks=False).merge,
}


class Contender(Protocol):
    """A timed step: `run(i)` is timed with the adapters attached, `prepare(i)` is not."""

    def attach(self) -> None: ...
    def detach(self) -> None: ...
    def prepare(self, i: int) -> None: ...
    def run(self, i: int) -> None: ...


class Ours:
    """One step of the product: noise draw, loss, backward and Adam update of `Merging`, without Lightning's loop."""

    def __init__(self, model: SDXL, loras: tuple[LoRA, LoRA], method: Any):
        pair = plain_pair()
        self.model, self.method = model, method
        self.loras = in_basis(loras, method.basis)
        layers = model.layers.adapted(self.loras, pair.roles)
        self.adapters = model.attach(self.loras)
        start, draws = method.masks(layers, SEED), Draws(model, pair, SEED)
        self.module = Merging(self.adapters, layers, method, [start], [pair], [draws])
        self.optimizer = self.module.configure_optimizers()
        self.detach()

    def attach(self) -> None:
        """Put the adapters on the UNet."""
        for layer, module in self.adapters.layers.items():
            self.model.unet.set_submodule(layer, module)

    def detach(self) -> None:
        """Take the adapters off the UNet."""
        self.adapters.detach()

    def prepare(self, i: int) -> None: ...

    def run(self, i: int) -> None:
        """Run step i."""
        self.optimizer.zero_grad()
        total(self.module.loss(i)).backward()
        self.optimizer.step()


class Plain:
    """One step of the sequential reference, with the same noise draws."""

    def __init__(self, model: SDXL, loras: tuple[LoRA, LoRA], method: Any, layer: type[ColumnMasked], loss: Callable):
        pair = plain_pair()
        self.net, self.method, self.loss = Sequential(model, loras, layer), method, loss
        self.layers = model.layers.adapted(loras, pair.roles)
        self.draws = Draws(model, pair, SEED)
        self.optimizer = torch.optim.Adam(self.net.masks, lr=method.fit.lr)

    def attach(self) -> None:
        """Put the masked layers on the UNet."""
        self.net.attach()

    def detach(self) -> None:
        """Take the masked layers off the UNet."""
        self.net.detach()

    def prepare(self, i: int) -> None: ...

    def terms(self, i: int) -> dict[str, Tensor]:
        """Return the loss terms of step i."""
        unused: Any = None
        return self.loss(self.net, self.draws.step(i, self.method.fit.batch, unused, self.layers), self.method)

    def run(self, i: int) -> None:
        """Run step i."""
        self.optimizer.zero_grad()
        total(self.terms(i)).backward()
        self.optimizer.step()


class Extra:
    """Only the passes that a DuoLoRA step adds to a ZipLoRA step: the cycle and its backward pass."""

    def __init__(self, duolora: Ours):
        self.duolora = duolora
        self.attach, self.detach = duolora.attach, duolora.detach

    def prepare(self, i: int) -> None:
        """Draw step i and compute its targets."""
        self.step: MergeStep = self.duolora.module.draw(i)
        self.targets = self.step.teachers()

    def run(self, i: int) -> None:
        """Run the cycle and its backward pass."""
        step, both = self.step, (0, 1)
        starts = [step.images[k].under(step.both) for k in both]
        if self.duolora.method.constyle == "through_merge":
            ends = remove(step, both, starts, step.merged(*starts), [(0,), (1,)])
            errors = [step.mse(target, end.prediction) for target, end in zip(self.targets, ends, strict=True)]
            torch.stack(errors).sum().backward()
        else:
            with torch.no_grad():
                remove(step, both, starts, step.unmasked(starts, [(1,), (0,)]), [(1,), (0,)])


class Floor:
    """ZipLoRA's rows through the bare UNet: a lower bound for any implementation of adapters.

    Two of the four rows have a backward pass, which ends at the first adapted layer, as in a merge.
    """

    def __init__(self, model: SDXL, method: Any):
        self.model, self.batch = model, method.fit.batch
        self.draws = Draws(model, plain_pair(), SEED)
        self.first = model.denoiser.get_parameter(f"{next(iter(model.layers.trained()))}.weight")

    def attach(self) -> None:
        """Require gradients of the first adapted layer."""
        self.first.requires_grad_(True)

    def detach(self) -> None:
        """Remove the gradient of the first adapted layer."""
        self.first.requires_grad_(False).grad = None

    def prepare(self, i: int) -> None: ...

    def run(self, i: int) -> None:
        """Run the rows of step i."""
        unused: Any = None
        step = self.draws.step(i, self.batch, unused, {})
        x, t = torch.cat([each.x for each in step.images]), step.t.repeat(len(step.images))
        prompts = Conditioning.join([each.prompt for each in step.images])
        with torch.no_grad():
            self.model.predict(x, t, prompts)
        self.model.predict(x, t, prompts).square().mean().backward()


def total(terms: dict[str, Tensor]) -> Tensor:
    """Return the sum of all loss terms."""
    return torch.stack([term.sum() for term in terms.values()]).sum()


def loras_of(model: SDXL, size: str) -> tuple[LoRA, LoRA]:
    """Return a random content LoRA and a random style LoRA of the size's rank."""
    return random_lora(model, RANKS[size], "content"), random_lora(model, RANKS[size], "style")


def builders(model: SDXL, loras: tuple[LoRA, LoRA]) -> dict[str, Callable[[], Contender]]:
    """Return a function that builds each contender; they share the parts that several of them need."""

    @cache
    def ours(name: str) -> Ours:
        return Ours(model, loras, METHODS[name])

    def plain(name: str, layer: type[ColumnMasked], loss: Callable) -> Plain:
        return Plain(model, loras, METHODS[name], layer, loss)

    return {
        PLAIN_ZIPLORA: lambda: plain(PLAIN_ZIPLORA, ColumnMasked, sequential.ziplora),
        ZIPLORA: lambda: ours(ZIPLORA),
        FLOOR: lambda: Floor(model, METHODS[ZIPLORA]),
        PLAIN_DUOLORA: lambda: plain(PLAIN_DUOLORA, RankMasked, sequential.duolora_released),
        RELEASED: lambda: ours(RELEASED),
        EXTRA_RELEASED: lambda: Extra(ours(RELEASED)),
        DUOLORA: lambda: ours(DUOLORA),
        EXTRA_DUOLORA: lambda: Extra(ours(DUOLORA)),
    }


def differences(ours: Ours, plain: Plain) -> dict[str, float]:
    """Compare our step with the reference's on one noise draw, with masks that differ from one.

    Gradients that are shorter than the median are differences of large numbers, so their errors are relative to the
    median length.

    Returns:
        Largest relative difference of a loss term and of a mask's gradient.
    """
    vectors = [mask.only() for masks in ours.module.masks.values() for mask in masks]
    with torch.no_grad():
        draw = torch.Generator().manual_seed(SEED)
        for mine, theirs in zip(vectors, plain.net.masks, strict=True):
            for vector in (mine, theirs):
                vector.grad = None
            theirs.copy_(mine.copy_(1 + 0.5 * torch.randn(mine.shape, generator=draw)))
    terms = []
    for contender, compute in ((ours, ours.module.loss), (plain, plain.terms)):
        contender.attach()
        terms.append(compute(0))
        total(terms[-1]).backward()
        contender.detach()
    left, right = ({name: float(term.detach()) for name, term in each.items()} for each in terms)
    assert left.keys() == right.keys()
    gradients = [tuple(gradient(vector) for vector in alike) for alike in zip(vectors, plain.net.masks, strict=True)]
    middle = median(float(theirs.norm()) for _, theirs in gradients)
    return {
        "loss": max(abs(left[name] / right[name] - 1) for name in right),
        "gradient": max(
            float((mine - theirs).norm()) / max(float(theirs.norm()), middle) for mine, theirs in gradients
        ),
    }


def gradient(mask: Tensor) -> Tensor:
    """Return the gradient of a mask."""
    assert mask.grad is not None
    return mask.grad
