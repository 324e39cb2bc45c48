"""Base class of scorers: a name, a preprocessing, a network, and embeddings by role."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from lorabench.scoring.cosine import normalize
from lorabench.scoring.preprocess import Preprocess


class Scorer(nn.Module):
    """One backbone. Subclasses set `metric` and `roles` and implement `features`.

    Attributes:
        name: Backbone and weights, such as "dino@micro"; the value of `backbone` in the scores.
        metric: Kind of score, such as "dino". Scores are named metric/role, because one backbone serves both roles.
        roles: Roles that it scores.
        version: Short hash of config and weights, so that scores of other weights are not confused with these.
    """

    metric: ClassVar[str]
    roles: ClassVar[tuple[str, ...]]
    metrics: ClassVar[tuple[str, ...]]  # names of its scores
    unit: ClassVar[bool] = True  # whether rows are L2-normalized

    def __init__(self, name: str, version: str, network: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.name = name
        self.version = version
        self.network = network.eval().requires_grad_(False)
        self.preprocess = preprocess

    @abstractmethod
    def features(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map preprocessed pixels [n, 3, crop, crop] to features [n, d] by role, not normalized."""

    def embed(self, images: Sequence[np.ndarray] | np.ndarray, batch: int = 64) -> dict[str, torch.Tensor]:
        """Embed uint8 RGB images ([n, H, W, 3], or a list of any sizes).

        Args:
            images: The images.
            batch: Images per forward pass; it changes the result only by rounding.

        Returns:
            Rows [n, d] by role, L2-normalized if the class has `unit`, float32 on the CPU.
        """
        if len(images) == 0:
            raise ValueError("no images to embed")
        return self.embed_cut(self.preprocess.cut(images), batch)

    @torch.no_grad()
    def embed_cut(self, cut: torch.Tensor, batch: int = 64) -> dict[str, torch.Tensor]:
        """Embed images that `preprocess.cut` has resized and cropped, uint8 [n, 3, crop, crop]."""
        device = next(self.parameters()).device
        parts: dict[str, list[torch.Tensor]] = {role: [] for role in self.roles}
        for some in cut.split(batch):
            for role, value in self.features(self.preprocess.scale(some.to(device))).items():
                parts[role].append((normalize(value) if self.unit else value.float()).cpu())
        return {role: torch.cat(values) for role, values in parts.items()}
