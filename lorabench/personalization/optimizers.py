"""Optimizers of LoRA training and the schedules of their learning rates.

AdamW is torch's. The other two need extra packages: AdamW with moments in 8 bits (Dettmers et al., arXiv 2110.02861;
bitsandbytes) and Prodigy, which estimates its own step size (Mishchenko and Defazio, arXiv 2306.06101; prodigyopt).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lorabench.config.recipe import check_recipe
from lorabench.config.schemas import LoRASpec

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR


def optimiser(spec: LoRASpec, groups: Sequence[dict[str, Any]]) -> Optimizer:
    """Return the optimizer of parameter groups ({"params": ..., "lr": ...}).

    Prodigy has the settings of diffusers' scripts: decoupled weight decay, bias correction, no estimate from the
    warm-up.
    """
    import torch

    check_recipe(spec)
    slow, fast = spec.betas
    settings: dict[str, Any] = {"lr": spec.lr, "betas": (slow, fast), "weight_decay": spec.weight_decay}
    if spec.optimizer == "adamw8bit":
        import bitsandbytes  # pyright: ignore[reportMissingImports] (an extra)

        return bitsandbytes.optim.AdamW8bit(groups, **settings)
    if spec.optimizer == "prodigy":
        from prodigyopt import Prodigy  # pyright: ignore[reportMissingImports] (an extra)

        with contextlib.redirect_stdout(io.StringIO()):  # it prints that its weight decay is decoupled
            return Prodigy(groups, decouple=True, use_bias_correction=True, safeguard_warmup=True, **settings)
    return torch.optim.AdamW(groups, **settings)


def schedule(optimiser: Optimizer, spec: LoRASpec) -> LambdaLR:
    """Return the learning rate by update: a linear warm-up, then diffusers' schedule of that name.

    It is diffusers' `get_scheduler` with one more warm-up update, one update ahead. In diffusers, the first update of a
    warm-up has a rate of zero and changes nothing. Without a warm-up both are the same.
    """
    from torch.optim.lr_scheduler import LambdaLR

    law = schedule_law(spec)
    return LambdaLR(optimiser, lambda update: law(update + 1))


def schedule_law(spec: LoRASpec) -> Callable[[int], float]:
    """Return diffusers' factor on the learning rate as a function of the number of finished updates."""
    import torch
    from diffusers.optimization import get_scheduler

    anything = torch.optim.SGD([torch.zeros(1)], lr=spec.lr)  # get_scheduler needs an optimizer
    [law] = get_scheduler(
        "constant_with_warmup" if spec.schedule == "constant" else spec.schedule,
        anything,
        num_warmup_steps=spec.warmup + 1,
        num_training_steps=max(spec.steps, spec.warmup + 1) + 1,
        num_cycles=spec.cycles,
    ).lr_lambdas
    return law
