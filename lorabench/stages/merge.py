"""Stage 2: merge a content LoRA and a style LoRA by a method."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pytorch_lightning.loggers import Logger

from lorabench.adapters import Gates
from lorabench.config import TrainerSpec
from lorabench.data.pairs import Pair
from lorabench.lora import LoRA
from lorabench.method import Method
from lorabench.models.sdxl import SDXL


@dataclass(frozen=True)
class MergeResult:
    """lora: the merge as one ordinary LoRA of rank r_c + r_s.  losses: term -> its value at each step."""

    lora: LoRA
    gates: dict[str, tuple[Gates, ...]] | None
    learned_params: int
    losses: dict[str, list[float]]

    def save(self, folder: Path) -> None:
        """Write merged.safetensors, gates.safetensors and merge.json."""
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path) -> "MergeResult":
        raise NotImplementedError


def merge(
    model: SDXL,
    method: Method,
    content: LoRA,
    style: LoRA,
    pair: Pair,
    seed: int,
    trainer: TrainerSpec,
    progress: Callable[[int], None] | None = None,
    logger: Logger | None = None,
) -> MergeResult:
    """progress: called after every step with the optimiser steps done so far, of method.fit.steps (none: 0 steps)."""
    raise NotImplementedError
