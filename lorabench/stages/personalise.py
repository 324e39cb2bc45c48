"""Stage 1: one LoRA for one concept, by DreamBooth-LoRA."""

from collections.abc import Callable
from typing import Any

from pytorch_lightning.loggers import Logger

from lorabench.config import LoRASpec, TrainerSpec
from lorabench.data.pairs import Concept
from lorabench.lora import LoRA
from lorabench.models.sdxl import SDXL


def personalise(
    model: SDXL,
    concept: Concept,
    spec: LoRASpec,
    seed: int,
    trainer: TrainerSpec,
    progress: Callable[[int], None] | None = None,
    logger: Logger | None = None,
) -> LoRA:
    """Train a LoRA on the images of a concept.

    progress: called after every step with the number of optimiser steps done so far, of spec.steps.
    """
    raise NotImplementedError
