"""The network that reads the world's factors from pixels: a small residual network with batch norm.

Its outputs are the factors of `OUTPUTS` side by side: logits of labels, and mean and log variance of numbers. It is
trained by `python -m pretraining factors` on subjects and styles that are not held out.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lorabench.scoring.description import FACTORS, METRICS
from lorabench.scoring.factors import WIDTH
from lorabench.scoring.scorer import Scorer


class Residual(nn.Module):
    """x + two convolutions with batch norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, width, h, w] -> the same shape."""
        return F.relu(x + self.second(F.relu(self.first(x))))


class FactorNetwork(nn.Module):
    """Pixels [n, 3, 64, 64] -> [n, WIDTH].

    The head reads the last map with its places, which show shapes, and the mean and deviation over each earlier map,
    which show textures and lines.

    Args:
        stem: Channels at half the resolution.
        widths: Channels at a quarter, an eighth and a sixteenth of it, where maps are 4 x 4.
        hidden: Width of the layer before the outputs.
    """

    def __init__(self, stem: int, widths: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        before = (stem, *widths[:-1])
        finer = (nn.Sequential(halved(old, new), Residual(new)) for old, new in zip(before, widths, strict=True))
        self.stages = nn.ModuleList([halved(3, stem), *finer])
        self.head = nn.Sequential(
            nn.Dropout(0.1), nn.Linear(16 * widths[-1] + 2 * sum(before), hidden), nn.GELU(), nn.Linear(hidden, WIDTH)
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x, textures = pixels, []
        for stage in self.stages:
            x = stage(x)
            textures += [x.mean(dim=(2, 3)), (x.var(dim=(2, 3)) + 1e-4).sqrt()]
        return self.head(torch.cat([x.flatten(1), *textures[:-2]], dim=1))


def halved(before: int, width: int) -> nn.Sequential:
    """Return a convolution that halves the resolution, with batch norm."""
    return nn.Sequential(nn.Conv2d(before, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


def build_factors(architecture: dict[str, Any]) -> FactorNetwork:
    """Build {"stem", "widths", "hidden"} with random weights."""
    return FactorNetwork(architecture["stem"], tuple(architecture["widths"]), architecture["hidden"])


class Factors(Scorer):
    """The reader of factors; its rows are the outputs of the network and not embeddings of unit length."""

    metric = "truth"
    roles = (FACTORS,)
    metrics = METRICS[FACTORS]
    unit = False

    def features(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {FACTORS: self.network(pixels)}
