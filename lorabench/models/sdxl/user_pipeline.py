"""A pipeline that the user has loaded, as a model."""

from __future__ import annotations

from typing import Any

from lorabench.base import UserError
from lorabench.models.sdxl.model import SDXL

PARTS = ("unet", "text_encoder", "text_encoder_2", "vae")


def open_pipeline(pipeline: Any) -> SDXL:
    """Return the model of a diffusers pipeline; attention and slicing stay as the user has set them.

    Raises:
        UserError: If the pipeline is not of SDXL's family, or has LoRAs already.
    """
    parts = [getattr(pipeline, name, None) for name in PARTS]
    if any(part is None for part in parts):
        raise UserError(f"{type(pipeline).__name__} must be a pipeline of SDXL; use StableDiffusionXLPipeline")
    if any(getattr(part, "peft_config", None) for part in parts):
        raise UserError("the pipeline must have no LoRAs loaded; use pipeline.unload_lora_weights()")
    processors, slicing = dict(pipeline.unet.attn_processors), pipeline.vae.use_slicing
    model = SDXL(pipeline)
    pipeline.unet.set_attn_processor(processors)
    pipeline.vae.use_slicing = slicing
    return model
