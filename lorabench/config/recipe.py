"""Checks of a training recipe."""

from dataclasses import replace
from importlib.util import find_spec

from lorabench.base import UserError
from lorabench.config.schemas import LoRASpec

EXTRAS = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}  # package of each of our extras


def check_recipe(spec: LoRASpec) -> None:
    """Check a training recipe.

    Raises:
        UserError: If it needs a package that is not installed, or has settings that contradict each other.
    """
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
            f"lora.optimizer=prodigy has a single learning rate, not lora.lr={spec.lr} and "
            f"lora.text_lr={spec.text_lr}; use lora.text_lr={spec.lr}"
        )


def token_recipe(recipe: LoRASpec, lr: float) -> LoRASpec:
    """Return a recipe for embeddings. Unused settings have fixed values, so that keys do not depend on them.

    Raises:
        UserError: If the recipe asks for prior preservation.
    """
    if recipe.prior_weight:
        raise UserError(
            f"lora.prior_weight={recipe.prior_weight} is not part of textual inversion; use lora.prior_weight=0"
        )
    return replace(
        recipe, lr=lr, rank=1, alpha=1.0, blocks=[], targets="attention", text_encoders=False, prior_images=1,
        sample_every=0,
    )  # fmt: skip


def check_without(spec: LoRASpec, training: str) -> None:
    """Check that a recipe asks for nothing that a special training does not have.

    Args:
        training: Name of the training in the message.

    Raises:
        UserError: If it asks for text encoders or for prior preservation.
    """
    check_recipe(spec)
    for name, wanted in (("text_encoders", spec.text_encoders), ("prior_weight", spec.prior_weight)):
        if wanted:
            raise UserError(f"lora.{name}={wanted} is not a setting of {training}; leave it out")
