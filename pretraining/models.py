"""The models that are pretrained here: micro SDXL and micro SD3. All other files serve both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabench.models.files import MICRO, TRAINED
from pretraining.architecture import build_pipeline
from pretraining.loss import Loss
from pretraining.transformer import FlowLoss, TransformerDenoiser, build_sd3_pipeline
from pretraining.unet import UNetDenoiser, VLoss


@dataclass(frozen=True)
class MicroModel:
    """A model that is pretrained on the microworld.

    Args:
        part: Name of the denoiser in the pipeline, and of the folder of its checkpoints.
        module: Class of the denoiser with its text encoders, all of which are trained.
        loss: Class of its loss.
        pipeline: Function that returns the pipeline for the keywords <part>, vae and text_encoders.
        folder: Folder of the exported pipeline.
        card: Model card without numbers, for a pipeline that has none.
    """

    part: str
    module: Callable[[], Any]
    loss: Callable[[], Loss]
    pipeline: Callable[..., Any]
    folder: Path
    card: Path | None = None


CARD = Path(__file__).with_name("micro_sd3.md")
MICRO_SDXL = MicroModel("unet", UNetDenoiser, VLoss, build_pipeline, MICRO)
MICRO_SD3 = MicroModel("transformer", TransformerDenoiser, FlowLoss, build_sd3_pipeline, TRAINED["micro_sd3"], CARD)
MODELS = {"micro_sdxl": MICRO_SDXL, "micro_sd3": MICRO_SD3}
