"""CSD (arXiv 2404.01292): a CLIP image tower without projection, followed by a style head and a content head.

The released model (learn2phoenix/CSD, CSD/model.py) has a `backbone` and two matrices without bias, `last_layer_style`
and `last_layer_content`. Their outputs are L2-normalized, and a score is the dot product of two of them. The released
weights are known not to reproduce the paper's table (issue #14 there), and the raw cosine is not calibrated (arXiv
2605.09030), so compare it with the baseline and oracle rows.
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
    """CSD with the parameter names of the released checkpoint; backbone: pixels -> [n, width], heads: [width, d]."""

    def __init__(self, backbone: nn.Module, width: int, dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.last_layer_style = nn.Parameter(torch.randn(width, dim) * width**-0.5)
        self.last_layer_content = nn.Parameter(torch.randn(width, dim) * width**-0.5)

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map pixels [n, 3, s, s] to {"content", "style"}, each [n, d], not normalized."""
        feature = self.backbone(pixels)
        return {"content": feature @ self.last_layer_content, "style": feature @ self.last_layer_style}


def build_csd(architecture: dict[str, Any]) -> CSDNetwork:
    """Build CSD from an open_clip model: its image tower without projection, and heads as wide as the joint space."""
    config = model_config(architecture)
    visual = open_clip.CLIP(**config).visual
    if not hasattr(visual, "proj"):  # RN towers: attention pooling includes the projection
        return CSDNetwork(visual, config["embed_dim"], config["embed_dim"])
    visual.register_parameter("proj", None)
    return CSDNetwork(visual, config["vision_cfg"]["width"], config["embed_dim"])


class CSD(Scorer):
    """CSD scores. The style head is the relevant one; it is unknown how far the released content head was trained."""

    metric = "csd"
    roles = ("content", "style")
    metrics = METRICS["csd"]

    def features(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.network(pixels)
