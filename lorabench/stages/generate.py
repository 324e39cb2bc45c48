"""Stage 3: images of a pair."""

from collections.abc import Callable, Sequence

import numpy as np

from lorabench.adapters import Gates
from lorabench.config import GenerateSpec, TrainerSpec
from lorabench.lora import LoRA
from lorabench.method import Method
from lorabench.models.sdxl import SDXL


def generate(
    model: SDXL,
    method: Method,
    loras: Sequence[LoRA],
    gates: dict[str, tuple[Gates, ...]] | None,
    prompts: Sequence[str],
    seeds: Sequence[int],
    spec: GenerateSpec,
    trainer: TrainerSpec,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Images uint8 [n, H, W, 3], one a prompt and seed (n of each).

    loras: (content, style), also for the frame methods base, content_only, style_only.  gates: MergeResult.gates.
    progress: called with the number of images done so far.
    """
    raise NotImplementedError
