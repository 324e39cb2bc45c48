"""The schedulers of diffusers that do not use random numbers. torch is not imported.

An image must depend only on the noise of its seed, so a scheduler that adds noise in its steps is refused: its noise
would come from the global random state and depend on the batch and the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorabench.base import UserError

DETERMINISTIC = (
    "DDIMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)
# Schedulers that add noise in every step, with the deterministic scheduler for the same models.
STOCHASTIC = {
    "DDPMScheduler": "DDIMScheduler",
    "DDPMParallelScheduler": "DDIMScheduler",
    "DPMSolverSDEScheduler": "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler": "EulerDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler": "KDPM2DiscreteScheduler",
    "LCMScheduler": "DDIMScheduler",
    "SASolverScheduler": "DPMSolverMultistepScheduler",
    "TCDScheduler": "DDIMScheduler",
}


def check_deterministic(name: str, config: Mapping[str, Any], owner: str) -> None:
    """Check that a scheduler does not use random numbers.

    Args:
        name: Class in diffusers.
        config: Its settings.
        owner: Name of its model, for the message.

    Raises:
        UserError: If it adds noise in its steps, or is unknown. The message names a deterministic scheduler.
    """
    algorithm = str(config.get("algorithm_type", ""))
    if name in STOCHASTIC:
        reason, use = "adds random noise in every step", STOCHASTIC[name]
    elif name not in DETERMINISTIC:
        reason, use = "is not known to be deterministic", "EulerDiscreteScheduler"
    elif algorithm.startswith("sde-"):
        reason, use = f"with algorithm_type={algorithm} adds random noise in every step", algorithm.removeprefix("sde-")
    else:
        return
    raise UserError(f"{owner} samples with {name}, which {reason}; use {use} in its scheduler configuration")
