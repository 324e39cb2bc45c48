"""Checks of a training recipe."""

from importlib.util import find_spec

from lorabench.base import UserError
from lorabench.config.schemas import LoRASpec

EXTRAS = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}  # names of our extras, and what they install


def check_recipe(spec: LoRASpec) -> None:
    """UserError where a recipe asks for what is not installed, or for two things that do not go together."""
    package = EXTRAS.get(spec.optimizer)
    if package and find_spec(package) is None:
        raise UserError(
            f"lora.optimizer={spec.optimizer} needs {package}, which is not installed; "
            f"run pip install lorabench[{spec.optimizer}]"
        )
    if len(spec.betas) != 2 or max(spec.betas) >= 1:
        raise UserError(f"lora.betas={list(spec.betas)} must be two numbers less than 1")
    if spec.optimizer == "prodigy" and spec.text_encoders and spec.text_lr != spec.lr:
        raise UserError(
            f"lora.optimizer=prodigy has one step size for all it trains, not lora.lr={spec.lr} and "
            f"lora.text_lr={spec.text_lr}; use lora.text_lr={spec.lr}"
        )
