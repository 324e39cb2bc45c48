"""DINO's place: the class token of a timm vision transformer (DINO, arXiv 2104.14294; DINOv2, 2304.07193).

For the published numbers: vit_small_patch16_224.dino with Resize 256 and CenterCrop 224, as in DreamBooth and
its successors. timm's own transform for these weights resizes to 248, hence the explicit preprocessing. DINOv2 runs at
224 as well, its positions resampled from 518 as in DreamBench++ (see lorabench/scoring/layouts.py).
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
    """architecture: {"model": a name timm knows, "args": its keyword arguments}; always without a classifier head."""
    try:
        return timm.create_model(architecture["model"], pretrained=False, num_classes=0, **architecture.get("args", {}))
    except RuntimeError as error:
        raise UserError(f"timm cannot build '{architecture['model']}' ({error}); see timm.list_models()") from error


class Dino(Scorer):
    """The pooled feature after the last norm: the class token of a plain transformer.

    Content is what most papers mean by it; B-LoRA and CSD-VAR compare it with the style's images too.
    """

    metric = "dino"
    roles = ("content", "style")
    metrics = METRICS["dino"]

    def features(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        feature = self.network(pixels)
        return {"content": feature, "style": feature}
