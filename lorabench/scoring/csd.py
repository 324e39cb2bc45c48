"""CSD (arXiv 2404.01292): a CLIP image tower without its projection, and a style and a content head on its feature.

Structure of the released model (learn2phoenix/CSD, CSD/model.py): `backbone`, and two bare matrices
`last_layer_style`, `last_layer_content` (no bias), whose products are L2-normalised; a score is their dot product.
The released weights are known not to reproduce the paper's table (issue #14 there), and raw CSD cosine is not
calibrated (arXiv 2605.09030): read it relative to the floor and ceiling rows.
"""

from __future__ import annotations

from typing import Any

import open_clip
import torch
from torch import nn

from lorabench.scoring.clip import model_config
from lorabench.scoring.description import METRICS
from lorabench.scoring.scorer import Scorer


class CSDNetwork(nn.Module):
    """backbone: pixels -> [n, width]; heads: [width, d]. Parameter names are those of the released checkpoint."""

    def __init__(self, backbone: nn.Module, width: int, dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.last_layer_style = nn.Parameter(torch.randn(width, dim) * width**-0.5)
        self.last_layer_content = nn.Parameter(torch.randn(width, dim) * width**-0.5)

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """pixels [n, 3, s, s] -> {"content", "style"}, each [n, d], not normalised."""
        feature = self.backbone(pixels)
        return {"content": feature @ self.last_layer_content, "style": feature @ self.last_layer_style}


def build_csd(architecture: dict[str, Any]) -> CSDNetwork:
    """The image tower of open_clip's model without its projection and text tower; heads as wide as the joint space."""
    config = model_config(architecture)
    visual = open_clip.CLIP(**config).visual
    if not hasattr(visual, "proj"):  # the RN towers, whose attention pooling projects by itself
        return CSDNetwork(visual, config["embed_dim"], config["embed_dim"])
    visual.register_parameter("proj", None)
    return CSDNetwork(visual, config["vision_cfg"]["width"], config["embed_dim"])


class CSD(Scorer):
    """The style head's score is the metric of interest; how far the released content head was trained is unknown."""

    metric = "csd"
    roles = ("content", "style")
    metrics = METRICS["csd"]

    def features(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.network(pixels)
