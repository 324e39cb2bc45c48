"""DINO: class token of a timm vision transformer (DINO, arXiv 2104.14294; DINOv2, arXiv 2304.07193).

Published numbers use vit_small_patch16_224.dino with Resize 256 and CenterCrop 224, as in DreamBooth and later papers.
timm's transform for these weights resizes to 248, so the preprocessing is explicit. DINOv2 also runs at 224, with
position embeddings resampled from 518 as in DreamBench++ (see layouts.py).
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import nn

from lorabench.base import UserError
from lorabench.scoring.description import METRICS
from lorabench.scoring.scorer import Scorer


def build_dino(architecture: dict[str, Any]) -> nn.Module:
    """Build {"model": name in timm, "args": keyword arguments} without a classifier head."""
    try:
        return timm.create_model(architecture["model"], pretrained=False, num_classes=0, **architecture.get("args", {}))
    except RuntimeError as error:
        raise UserError(
            f"architecture.model={architecture['model']} must be a model of timm ({error}); see timm.list_models()"
        ) from error


class Dino(Scorer):
    """DINO scores from the pooled feature after the last norm, which is the class token of a plain transformer.

    Most papers compare it with the content's images; B-LoRA and CSD-VAR also compare it with the style's.
    """

    metric = "dino"
    roles = ("content", "style")
    metrics = METRICS["dino"]

    def features(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        feature = self.network(pixels)
        return {"content": feature, "style": feature}
