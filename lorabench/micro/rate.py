"""The learning rate of both trainings: a short rise, constant, and a linear fall to zero at the end.

Constant in between, so that a training can be continued, or ended anywhere by a short fall from its last checkpoint.
"""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def trapezoid(optimizer: Optimizer, steps: int, decay: int, warmup: int = 300) -> dict[str, Any]:
    """What `configure_optimizers` returns: the rate falls over the last `decay` of `steps` optimiser steps."""
    schedule = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warmup, max(steps - step, 1) / max(decay, 1)))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
