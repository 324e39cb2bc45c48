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


# Samplers of generate.sampler: class in diffusers and settings that replace those of the model's scheduler.
EULER, DPM = "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": (EULER, {"use_karras_sigmas": False}),
    "euler_karras": (EULER, {"use_karras_sigmas": True}),
    "dpmpp_2m": (DPM, {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": False}),
    "dpmpp_2m_karras": (DPM, {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": True}),
}


def check_own_sampler(kind: str) -> None:
    """Check that images of a flow-matching model are sampled by its own steps, which are Euler's.

    Raises:
        UserError: If `generate.sampler` is another one.
    """
    if kind != "model":
        raise UserError(f"generate.sampler={kind} is for DDPM models; use generate.sampler=model")


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
